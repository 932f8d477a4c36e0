// The part of MNN's public C++ interface that the runner calls, written from its documentation for builds without an SDK.
//
// Declarations match MNN 3.x's library: class and function names, argument types, and the order of members of the two
// structures that cross the border. With -DMNN_ROOT= the SDK's own headers are used instead of this file.
#ifndef IRTOOL_MNN_INTERPRETER_HPP
#define IRTOOL_MNN_INTERPRETER_HPP

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

enum halide_type_code_t { halide_type_int = 0, halide_type_uint = 1, halide_type_float = 2 };

struct halide_type_t {
    halide_type_code_t code;
    uint8_t bits;    // of one element
    uint16_t lanes;  // 1
};

struct halide_dimension_t;

struct halide_buffer_t {
    uint64_t device;
    const void* device_interface;
    uint8_t* host;
    uint64_t flags;
    halide_type_t type;
    int32_t dimensions;
    halide_dimension_t* dim;
    void* padding;
};

enum MNNForwardType { MNN_FORWARD_CPU = 0 };

namespace MNN {

enum ErrorCode { NO_ERROR = 0 };

struct BackendConfig;
class Session;

class Tensor {
public:
    enum DimensionType { TENSORFLOW, CAFFE, CAFFE_C4 };

    ~Tensor();
    // A tensor over the caller's memory; freed by destroy, the memory by the caller.
    static Tensor* create(const std::vector<int>& shape, halide_type_t type, void* data, DimensionType layout);
    template <typename T>
    static Tensor* create(const std::vector<int>& shape, void* data, DimensionType layout);
    static void destroy(Tensor* tensor);

    bool copyFromHostTensor(const Tensor* host);
    bool copyToHostTensor(Tensor* host) const;
    std::vector<int> shape() const;
    halide_type_t getType() const { return buffer_.type; }

private:
    Tensor() = delete;
    halide_buffer_t buffer_;
    void* describe_;
};

template <>
inline Tensor* Tensor::create<float>(const std::vector<int>& shape, void* data, DimensionType layout) {
    return create(shape, halide_type_t{halide_type_float, 32, 1}, data, layout);
}

struct ScheduleConfig {
    std::vector<std::string> saveTensors;
    MNNForwardType type = MNN_FORWARD_CPU;
    int numThread = 4;
    struct Path {
        std::vector<std::string> inputs;
        std::vector<std::string> outputs;
        int mode = 0;
    };
    Path path;
    MNNForwardType backupType = MNN_FORWARD_CPU;
    BackendConfig* backendConfig = nullptr;
};

class Interpreter {
public:
    static Interpreter* createFromBuffer(const void* buffer, size_t size);
    static void destroy(Interpreter* net);
    ~Interpreter();

    Session* createSession(const ScheduleConfig& config);
    void resizeTensor(Tensor* tensor, const std::vector<int>& sizes);
    void resizeSession(Session* session);
    ErrorCode runSession(Session* session) const;
    Tensor* getSessionInput(const Session* session, const char* name);
    Tensor* getSessionOutput(const Session* session, const char* name);

private:
    Interpreter() = delete;
};

}  // namespace MNN

#endif

#include "json.hpp"

#include <cctype>
#include <clocale>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "failure.hpp"

namespace {

constexpr int kDeepest = 32;

class Parser {
public:
    explicit Parser(const std::string& text) : text_(text) {}

    Json all() {
        Json value = any(0);
        space();
        if (at_ != text_.size()) fail("something follows the value");
        return value;
    }

private:
    const std::string& text_;
    size_t at_ = 0;

    [[noreturn]] void fail(const std::string& what) const {
        throw Failure("not JSON at byte " + std::to_string(at_) + ": " + what);
    }
    char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
    void space() {
        while (at_ < text_.size() && std::strchr(" \t\r\n", text_[at_]) && text_[at_] != '\0') ++at_;
    }
    void expect(char wanted) {
        space();
        if (peek() != wanted || at_ >= text_.size()) fail(std::string("expected '") + wanted + "'");
        ++at_;
    }
    bool take(char wanted) {
        space();
        if (at_ >= text_.size() || text_[at_] != wanted) return false;
        ++at_;
        return true;
    }

    Json any(int depth) {
        if (depth > kDeepest) fail("nested too deeply");
        space();
        switch (peek()) {
            case '{': return object(depth);
            case '[': return array(depth);
            case '"': return string_value();
            default: return std::isdigit(static_cast<unsigned char>(peek())) || peek() == '-' ? number() : word();
        }
    }

    Json object(int depth) {
        Json value;
        value.kind = Json::Kind::object;
        expect('{');
        if (take('}')) return value;
        do {
            space();
            std::string name = string();
            expect(':');
            value.members[name] = any(depth + 1);
        } while (take(','));
        expect('}');
        return value;
    }

    Json array(int depth) {
        Json value;
        value.kind = Json::Kind::array;
        expect('[');
        if (take(']')) return value;
        do {
            value.items.push_back(any(depth + 1));
        } while (take(','));
        expect(']');
        return value;
    }

    Json string_value() {
        Json value;
        value.kind = Json::Kind::text;
        value.text = string();
        return value;
    }

    Json number() {
        Json value;
        value.kind = Json::Kind::number;
        const size_t begin = at_;
        while (at_ < text_.size() && std::strchr("+-.eE0123456789", text_[at_]) && text_[at_] != '\0') ++at_;
        const std::string digits = text_.substr(begin, at_ - begin);
        char* end = nullptr;
        value.number = std::strtod(digits.c_str(), &end);
        if (end == digits.c_str() || *end != '\0') fail("not a number");
        return value;
    }

    Json word() {
        for (const auto& [name, kind, number] : {std::tuple{"true", Json::Kind::boolean, 1.0}, {"false", Json::Kind::boolean, 0.0}, {"null", Json::Kind::null, 0.0}}) {
            if (text_.compare(at_, std::strlen(name), name) == 0) {
                at_ += std::strlen(name);
                Json value;
                value.kind = kind;
                value.number = number;
                return value;
            }
        }
        fail(at_ < text_.size() ? "no value begins like that" : "the text ends too early");
    }

    std::string string() {
        if (peek() != '"' || at_ >= text_.size()) fail("expected a string");
        ++at_;
        std::string found;
        while (true) {
            if (at_ >= text_.size()) fail("the string does not end");
            const char c = text_[at_++];
            if (c == '"') return found;
            if (c == '\\') {
                escape(found);
            } else {
                found += c;
            }
        }
    }

    void escape(std::string& found) {
        if (at_ >= text_.size()) fail("the string does not end");
        const char c = text_[at_++];
        static const std::string names = "\"\\/bfnrt", values = "\"\\/\b\f\n\r\t";
        if (c == 'u') return append_utf8(found, code_point());
        const size_t which = names.find(c);
        if (which == std::string::npos) fail("an unknown escape");
        found += values[which];
    }

    unsigned code_unit() {
        unsigned value = 0;
        for (int digit = 0; digit < 4; ++digit, ++at_) {
            if (at_ >= text_.size() || !std::isxdigit(static_cast<unsigned char>(text_[at_]))) fail("a bad \\u escape");
            const char c = text_[at_];
            value = value * 16 + static_cast<unsigned>(c <= '9' ? c - '0' : (c | 32) - 'a' + 10);
        }
        return value;
    }

    unsigned code_point() {
        const unsigned first = code_unit();
        if (first < 0xD800 || first > 0xDFFF) return first;
        if (first >= 0xDC00 || text_.compare(at_, 2, "\\u") != 0) return 0xFFFD;
        at_ += 2;
        const unsigned second = code_unit();
        if (second < 0xDC00 || second > 0xDFFF) return 0xFFFD;
        return 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
    }

    static void append_utf8(std::string& found, unsigned code) {
        if (code < 0x80) {
            found += static_cast<char>(code);
            return;
        }
        const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
        static const unsigned lead[] = {0, 0xC0, 0xE0, 0xF0};
        found += static_cast<char>(lead[more] | (code >> (6 * more)));
        for (int left = more - 1; left >= 0; --left) found += static_cast<char>(0x80 | ((code >> (6 * left)) & 0x3F));
    }
};

// The length of the UTF-8 sequence that begins here, or 0 if none does.
size_t sequence(const std::string& text, size_t at) {
    const auto c = static_cast<unsigned char>(text[at]);
    const size_t length = c < 0x80 ? 1 : (c >> 5) == 6 ? 2 : (c >> 4) == 14 ? 3 : (c >> 3) == 30 ? 4 : 0;
    if (length == 0 || at + length > text.size() || c == 0xC0 || c == 0xC1) return 0;
    for (size_t step = 1; step < length; ++step) {
        if ((static_cast<unsigned char>(text[at + step]) >> 6) != 2) return 0;
    }
    return length;
}

}  // namespace

const Json& Json::operator[](const std::string& name) const {
    static const Json nothing;
    const auto found = members.find(name);
    return found == members.end() ? nothing : found->second;
}

Json parse_json(const std::string& text) { return Parser(text).all(); }

std::string quoted(const std::string& text) {
    std::string found = "\"";
    for (size_t at = 0; at < text.size();) {
        const size_t length = sequence(text, at);
        const auto c = static_cast<unsigned char>(text[at]);
        if (length == 0) {
            found += "\\ufffd";
        } else if (c == '"' || c == '\\') {
            found += '\\';
            found += static_cast<char>(c);
        } else if (c < 0x20) {
            char escape[8];
            std::snprintf(escape, sizeof escape, "\\u%04x", c);
            found += escape;
        } else {
            found += text.substr(at, length);
        }
        at += length == 0 ? 1 : length;
    }
    return found + '"';
}

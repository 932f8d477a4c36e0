// Enough JSON to read a model's description. Numbers are doubles; nesting deeper than 32 is refused.
#pragma once

#include <map>
#include <string>
#include <vector>

struct Json {
    enum class Kind { null, boolean, number, text, array, object };

    Kind kind = Kind::null;
    double number = 0;  // also 0 or 1 for a boolean
    std::string text;
    std::vector<Json> items;
    std::map<std::string, Json> members;

    // The member, or null if this is no object or has none of that name.
    const Json& operator[](const std::string& name) const;
};

// Throws Failure, with the position, if the text is not one JSON value.
Json parse_json(const std::string& text);

// The text as a JSON string, quotes included. Bytes that are not UTF-8 become U+FFFD.
std::string quoted(const std::string& text);

// The objects of TensorRT as its callers see them. Only what callers use is here.
//
// NVIDIA's headers are not on PyPI, so the calls are named by the place of each function in the
// table of its class. A major release keeps these places, and new functions come after the old
// ones. All places here are those of TensorRT 10. TensorRT 11 and TensorRT for RTX dropped functions,
// those that each class lists as GONE, and what comes after them moved up. A public class (IBuilder)
// is a handle: a table with nothing but destructors, and a pointer to the object behind it
// (VBuilder), whose table has the functions.
#pragma once
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <map>
#include <string>
#include <typeinfo>
#include <utility>
#include <vector>

#include "lab.h"

#ifndef TENSORRT
#define TENSORRT 10
#endif

constexpr int ROOM = 100;  // no class has more functions
using Places = std::initializer_list<int>;
using Function = void (*)();

struct Dims {
    int32_t rank = 0;
    int64_t size[8] = {};
};

struct Answer {
    int place;
    const char *name;  // in NVIDIA's headers, for the reader
    Function function;
};

// A lambda as a plain function, called with the object as its first argument, as a method is.
template <class Lambda>
Answer answer(int place, const char *name, Lambda lambda) {
    return {place, name, reinterpret_cast<Function>(+lambda)};
}

// The same for functions that set what no one asks for again.
template <int place>
long ignore(void *) {
    return 1;
}

// Every function that has no answer tells the log so; a test asserts that none did.
template <class Object, int place>
long unanswered(Object *) {
    record("{\"event\": \"unanswered\", \"object\": \"%s\", \"place\": %d}", Object::NAME, place);
    return 0;
}

struct Rtti {
    virtual ~Rtti() = default;
};

template <class Object>
struct Table {
    // As compilers lay it out: the offset to the whole object, its type, and then the functions.
    const void *head[2] = {nullptr, &typeid(Rtti)};
    Function functions[ROOM];

    Table(std::initializer_list<Answer> answers, Places ignored = {}) {
        fill(std::make_integer_sequence<int, ROOM>{});
        for (int place : ignored) put(place, reinterpret_cast<Function>(ignore<0>));
        for (const Answer &it : answers) put(it.place, it.function);
    }
    void put(int place, Function function) {
        int before = 0;
        for (int gone : Object::GONE) {
            if (TENSORRT > 10 && gone == place) return;
            before += TENSORRT > 10 && gone < place;
        }
        functions[place - before] = function;
    }
    // Functions that TensorRT 10 does not have, by their own places.
    Table &with(std::initializer_list<Answer> answers) {
        for (const Answer &it : answers) functions[it.place] = it.function;
        return *this;
    }
    template <int... places>
    void fill(std::integer_sequence<int, places...>) {
        ((functions[places] = reinterpret_cast<Function>(unanswered<Object, places>)), ...);
    }
};

// An object behind a handle. Callers delete few of them, and a test's process ends soon: none is
// freed.
struct Object {
    static constexpr Places GONE{};
    const Function *table;
};

struct Handle {
    static constexpr const char *NAME = "handle";
    static constexpr Places GONE{};
    const Function *table;
    Object *object;
};

inline Handle *handle(Object *object) {
    static const Table<Handle> table({}, {0, 1});
    return new Handle{table.functions, object};
}

template <class T>
T *behind(void *given) {
    return static_cast<T *>(static_cast<Handle *>(given)->object);
}

// A function of an object that the caller made: its logger, its progress monitor.
template <class Result, class... Values>
Result call(void *object, int place, Values... values) {
    auto function = (*static_cast<Function **>(object))[place];
    return reinterpret_cast<Result (*)(void *, Values...)>(function)(object, values...);
}

enum Severity { INTERNAL_ERROR, ERROR, WARNING, INFO };

inline void tell(void *logger, Severity severity, const std::string &text) {
    if (logger) call<void>(logger, 0, static_cast<int>(severity), text.c_str());
}

struct Tensor : Object {
    static constexpr const char *NAME = "ITensor";
    static constexpr Places GONE{6, 8, 15, 16, 17, 18};
    Tensor();
    std::string name;
    int type;
    Dims dims;
    bool is_input;
};

struct Layer : Object {
    static constexpr const char *NAME = "ILayer";
    static constexpr Places GONE{10, 11, 12, 13, 14, 16, 17};
    Layer();
    std::string name;
    int type;
};

// A graph that the Python side holds, and what it says about it.
struct Graph {
    long number = -1;  // none yet
    bool has_integers = false;
    std::vector<std::string> plugins;  // operators that only plugins implement
    std::vector<Tensor *> tensors;     // inputs first
    std::vector<Layer *> layers;
    const Tensor *find(const char *name) const;
    int count(bool inputs) const;
    Tensor *at(bool inputs, int index) const;
    bool read(const void *onnx, long size, const char *path);  // false: `error` says why
    std::string error;
    // Faults of the script strike the graph that a test is about, and no probe: it has this input.
    bool is_struck() const;
    bool is_struck(const char *fault, const char *step) const;  // to crash or to hang in a step
};

struct Network : Object {
    static constexpr const char *NAME = "INetworkDefinition";
    static constexpr Places GONE{44, 49, 50};
    Network(unsigned flags, Handle *builder);
    unsigned flags;
    bool is_strongly_typed() const { return TENSORRT > 10 || flags & 2; }
    Handle *builder;
    Graph graph;
};

struct Engine;
Engine *engine_of(void *refitter);

// A plugin that TensorRT brings along; it is there once `initLibNvInferPlugins` was called.
struct Plugin : Object {
    static constexpr const char *NAME = "IPluginCreator";
    explicit Plugin(const char *name);
    const char *name;
};
const std::vector<Plugin *> &plugins();

// Asks the Python side. The reply lives until the thread asks again; on failure it is the reason.
struct Reply {
    bool failed;
    const char *text;
    long size;
};
Reply ask(const char *what, long graph, const std::string &request = "", const void *data = nullptr,
          long size = 0);

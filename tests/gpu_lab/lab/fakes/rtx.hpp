// What TensorRT for RTX has more than TensorRT 10: kernels are compiled when an engine is loaded for
// the first time, and kept in a cache. Part of nvinfer.cpp.
#pragma once

static const std::string KERNELS = "SIMULATED KERNELS ";

struct RuntimeCache : Object {
    static constexpr const char *NAME = "IRuntimeCache";
    std::string bytes;
    RuntimeCache() : Object{} {
        static const Table<RuntimeCache> functions(
            {
                answer(2, "serialize", [](RuntimeCache *it) { return handle(new HostMemory(it->bytes)); }),
                answer(3, "deserialize",
                       [](RuntimeCache *it, const char *bytes, size_t size) {
                           it->bytes = std::string(bytes, size);
                           return !size || it->bytes.rfind(KERNELS, 0) == 0;
                       }),
                answer(4, "reset", [](RuntimeCache *it) { return it->bytes.clear(), true; }),
            },
            {0, 1});
        table = functions.functions;
    }
};

struct RuntimeConfig : Object {
    static constexpr const char *NAME = "IRuntimeConfig";
    RuntimeCache *cache = nullptr;
    int graph = 0;
    RuntimeConfig() : Object{} {
        static const Table<RuntimeConfig> functions(
            {
                answer(5, "createRuntimeCache", [](RuntimeConfig *) { return handle(new RuntimeCache); }),
                answer(6, "setRuntimeCache",
                       [](RuntimeConfig *it, void *cache) {
                           it->cache = behind<RuntimeCache>(cache);
                           return true;
                       }),
                answer(10, "setCudaGraphStrategy",
                       [](RuntimeConfig *it, int strategy) {
                           it->graph = strategy;
                           return true;
                       }),
            },
            {0, 1, 3, 8});
        table = functions.functions;
    }
};

// A context compiles the kernels that its cache lacks: those of another GPU do not fit.
inline Handle *compiled_context(Engine *engine, RuntimeConfig *config) {
    std::string kernels = KERNELS + std::to_string(current_capability());
    bool cached = config->cache && config->cache->bytes == kernels;
    record("{\"event\": \"kernels\", \"cached\": %s, \"kept\": %s, \"graph\": %s}", cached ? "true" : "false",
           config->cache ? "true" : "false", config->graph ? "true" : "false");
    if (config->cache) config->cache->bytes = kernels;
    return handle(new Context(engine));
}

inline std::initializer_list<Answer> rtx_engine() {
    static const std::initializer_list<Answer> answers{
        answer(48, "createRuntimeConfig", [](Engine *) { return handle(new RuntimeConfig); }),
        answer(47, "createExecutionContext",
               [](Engine *it, void *config) {
                   return compiled_context(it, behind<RuntimeConfig>(config));
               }),
    };
    return answers;
}

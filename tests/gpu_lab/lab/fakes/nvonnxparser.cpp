// libnvonnxparser.so.10 and .11: hands the ONNX bytes to the Python side, and says what it finds
// there.
#include <signal.h>

#include "tensorrt.hpp"

using std::string;
void refit(Engine *engine, long graph);  // of our libnvinfer

struct ParserError : Object {
    static constexpr const char *NAME = "IParserError";
    string text;
    explicit ParserError(string given) : Object{}, text(std::move(given)) {
        static const Table<ParserError> functions({
            answer(0, "code", [](ParserError *) { return 8; }),  // UNSUPPORTED_NODE
            answer(1, "desc", [](ParserError *it) { return it->text.c_str(); }),
            answer(2, "file", [](ParserError *) { return "nvonnxparser.cpp"; }),
            answer(3, "line", [](ParserError *) { return 1; }),
            answer(4, "func", [](ParserError *) { return "parse"; }),
            answer(5, "node", [](ParserError *) { return 0; }),
            answer(6, "nodeName", [](ParserError *) { return "node"; }),
            answer(7, "nodeOperator", [](ParserError *) { return "operator"; }),
            answer(8, "localFunctionStack", [](ParserError *) { return (void *)nullptr; }),
            answer(9, "localFunctionStackSize", [](ParserError *) { return 0; }),
        });
        table = functions.functions;
    }
};

struct Parser : Object {
    static constexpr const char *NAME = "IParser";
    static constexpr Places GONE{2, 3};
    Network *network;
    void *logger;
    std::vector<ParserError *> errors;
    std::vector<std::vector<int64_t>> taken;  // nodes, a list for each engine that they would make
    Parser(Network *network, void *logger);
    bool parse(const void *onnx, long size, const char *path);
    bool supports(const void *onnx, long size);
};

bool Parser::parse(const void *onnx, long size, const char *path) {
    char text[256];
    string problem;
    if (!network->graph.read(onnx, size, path)) problem = network->graph.error;
    if (network->graph.is_struck("crash", "parse")) raise(SIGSEGV);
    if (network->graph.is_struck()) problem += script_text("parse_error", text, sizeof text);
    for (const string &needed : network->graph.plugins) {
        bool is_there = false;
        for (const Plugin *plugin : plugins()) is_there |= plugin->name == needed;
        if (!is_there)
            problem = "Plugin not found, are the plugin name, version, and namespace correct?";
    }
    if (problem.empty()) return true;
    errors.push_back(new ParserError(problem));
    tell(logger, ERROR, problem);
    return false;
}

// The Python side answers with a line for each list of nodes.
bool Parser::supports(const void *onnx, long size) {
    Graph graph;
    taken.clear();
    if (!graph.read(onnx, size, nullptr)) return false;
    Reply reply = ask("supports", graph.number);
    for (const char *line = reply.text; *line; line += *line == '\n') {
        taken.emplace_back();
        while (*line && *line != '\n') taken.back().push_back(strtol(line, (char **)&line, 10));
    }
    return taken.size() == 1 && taken[0].size() == graph.layers.size();
}

Parser::Parser(Network *given, void *log) : Object{}, network(given), logger(log) {
    static const Table<Parser> functions(
        {
            answer(0, "parse",
                   [](Parser *it, const void *onnx, size_t size, const char *) {
                       return it->parse(onnx, size, nullptr);
                   }),
            answer(1, "parseFromFile",
                   [](Parser *it, const char *path, int) { return it->parse(nullptr, 0, path); }),
            answer(5, "getNbErrors", [](Parser *it) { return int(it->errors.size()); }),
            answer(6, "getError", [](Parser *it, int index) { return it->errors[index]; }),
            answer(12, "getFlags", [](Parser *) { return 0u; }),
            answer(15, "getFlag", [](Parser *, int) { return false; }),
            answer(17, "supportsModelV2",
                   [](Parser *it, const void *onnx, size_t size, const char *) {
                       return it->supports(onnx, size);
                   }),
            answer(18, "getNbSubgraphs", [](Parser *it) { return int64_t(it->taken.size()); }),
            answer(19, "isSubgraphSupported", [](Parser *, int64_t) { return true; }),
            answer(20, "getSubgraphNodes",
                   [](Parser *it, int64_t index, int64_t *length) {
                       *length = int64_t(it->taken[index].size());
                       return it->taken[index].data();
                   }),
        },
        {7, 8, 9, 11, 13, 14, 24});
    table = functions.functions;
}

struct ParserRefitter : Object {
    static constexpr const char *NAME = "IParserRefitter";
    Engine *engine;
    explicit ParserRefitter(Engine *given) : Object{}, engine(given) {
        static const Table<ParserRefitter> functions(
            {
                answer(0, "refitFromBytes",
                       [](ParserRefitter *it, const void *onnx, size_t size, const char *) {
                           Graph graph;
                           bool is_read = graph.read(onnx, size, nullptr);
                           if (is_read) refit(it->engine, graph.number);
                           return is_read;
                       }),
                answer(1, "refitFromFile",
                       [](ParserRefitter *it, const char *path) {
                           Graph graph;
                           bool is_read = graph.read(nullptr, 0, path);
                           if (is_read) refit(it->engine, graph.number);
                           return is_read;
                       }),
                answer(2, "getNbErrors", [](ParserRefitter *) { return 0; }),
            },
            {4, 5, 6});
        table = functions.functions;
    }
};

extern "C" {
void *createNvOnnxParser_INTERNAL(void *network, void *logger, int) {
    return new Parser(behind<Network>(network), logger);
}
void *createNvOnnxParserRefitter_INTERNAL(void *refitter, void *, int) {
    return new ParserRefitter(engine_of(refitter));
}
int getNvOnnxParserVersion() { return TENSORRT > 10 ? 110400 : 101601; }
}

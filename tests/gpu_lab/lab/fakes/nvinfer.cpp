// libnvinfer.so.10 and .11: builds "engines" that hold the ONNX graph and the options of the build,
// and runs them by asking the Python side (site/gpu_lab_graphs.py) to compute the graph on the CPU.
#include <signal.h>
#include <unistd.h>

#include <cinttypes>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include "tensorrt.hpp"

using std::string;

#ifdef RTX
#define LIBRARY "libtensorrt_rtx.so.1"
// TensorRT for RTX is linked to no CUDA library: it finds the one that is loaded when it needs it.
template <class Function>
static Function of_cudart(const char *name) {
    return reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
}
#define lab_capture of_cudart<int (*)(void (*)(void *), void *)>("lab_capture")
#define cudaGetDevice of_cudart<cudaError_t (*)(int *)>("cudaGetDevice")
#define cudaFree of_cudart<cudaError_t (*)(void *)>("cudaFree")
#define cudaMalloc of_cudart<cudaError_t (*)(void **, size_t)>("cudaMalloc")
#else
#define LIBRARY "libnvinfer.so." TEXT(TENSORRT)
extern "C" int lab_capture(void (*run)(void *), void *state);  // of our libcudart
#endif

// --- the Python side ---

using Brain = const char *(const char *what, long graph, const void *data, long size,
                           const char *request, long *reply_size);
static Brain *brain;
#define QUOTED(text) #text
#define TEXT(macro) QUOTED(macro)

extern "C" void lab_set_brain(Brain *function) { brain = function; }

Reply ask(const char *what, long graph, const string &request, const void *data, long size) {
    if (!brain) {
        auto ensure = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "PyGILState_Ensure"));
        auto run =
            reinterpret_cast<int (*)(const char *)>(dlsym(RTLD_DEFAULT, "PyRun_SimpleString"));
        auto release = reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "PyGILState_Release"));
        if (!run) return {true, "the laboratory computes in Python processes only", 0};
        int state = ensure();
        run("import gpu_lab_graphs; gpu_lab_graphs.connect('" LIBRARY "')");
        release(state);
        if (!brain) return {true, "gpu_lab_graphs cannot be imported", 0};
    }
    Reply reply{};
    reply.text = brain(what, graph, data, size, request.c_str(), &reply.size);
    if ((reply.failed = reply.size < 0)) reply.size = 0;
    return reply;
}

// --- graphs: networks are made of them, engines hold them ---

const Tensor *Graph::find(const char *name) const {
    for (const Tensor *tensor : tensors)
        if (tensor->name == name) return tensor;
    return nullptr;
}

int Graph::count(bool inputs) const {
    int sum = 0;
    for (const Tensor *tensor : tensors) sum += tensor->is_input == inputs;
    return sum;
}

Tensor *Graph::at(bool inputs, int index) const {
    return tensors[index + (inputs ? 0 : count(true))];
}

bool Graph::is_struck() const {
    char input[64];
    return find(script_text("strikes", input, sizeof input));
}

bool Graph::is_struck(const char *fault, const char *step) const {
    char text[16];
    return is_struck() && !strcmp(script_text(fault, text, sizeof text), step);
}

static Dims read_dims(const char *&text, int rank) {
    Dims dims{rank};
    for (int axis = 0; axis < rank; axis++) dims.size[axis] = strtol(text, (char **)&text, 10);
    return dims;
}

static void write_dims(string &text, const Dims &dims) {
    for (int axis = 0; axis < dims.rank; axis++) text += ' ' + std::to_string(dims.size[axis]);
}

// Reads `input TYPE RANK SIZE... NAME`, `output` the same, `layer TYPE NAME`, `plugin NAME`,
// `integers`.
bool Graph::read(const void *onnx, long size, const char *path) {
    Reply reply = ask(path ? "load file" : "load", -1, path ? path : "", onnx, size);
    if (reply.failed) return error = reply.text, false;
    number = atol(reply.text);
    string all = ask("describe", number).text;
    for (const char *line = all.c_str(); *line; line += *line == '\n') {
        const char *end = line + strcspn(line, "\n"), *text = line + strcspn(line, " \n");
        string kind(line, text);
        if (kind == "integers") has_integers = true;
        if (kind == "plugin") plugins.emplace_back(text + 1, end);
        if (kind == "layer") {
            auto *layer = new Layer;
            layer->type = strtol(text, (char **)&text, 10);
            layer->name = string(text + 1, end);
            layers.push_back(layer);
        }
        if (kind == "input" || kind == "output") {
            auto *tensor = new Tensor;
            tensor->is_input = kind == "input";
            tensor->type = strtol(text, (char **)&text, 10);
            int rank = strtol(text, (char **)&text, 10);
            tensor->dims = read_dims(text, rank);
            tensor->name = string(text + 1, end);
            tensors.push_back(tensor);
        }
        line = end;
    }
    return true;
}

Tensor::Tensor() : Object{} {
    static const Table<Tensor> functions(
        {
            answer(3, "getName", [](Tensor *it) { return it->name.c_str(); }),
            answer(5, "getDimensions", [](Tensor *it) { return it->dims; }),
            answer(7, "getType", [](Tensor *it) { return it->type; }),
            answer(9, "isNetworkInput", [](Tensor *it) { return it->is_input; }),
            answer(10, "isNetworkOutput", [](Tensor *it) { return !it->is_input; }),
            answer(13, "getLocation", [](Tensor *) { return 0; }),
            answer(21, "isShapeTensor", [](Tensor *) { return false; }),
            answer(22, "isExecutionTensor", [](Tensor *) { return true; }),
        },
        {2, 4, 14, 19, 23});
    table = functions.functions;
}

Layer::Layer() : Object{} {
    static const Table<Layer> functions({
        answer(2, "getType", [](Layer *it) { return it->type; }),
        answer(4, "getName", [](Layer *it) { return it->name.c_str(); }),
        answer(5, "getNbInputs", [](Layer *) { return 0; }),
        answer(7, "getNbOutputs", [](Layer *) { return 0; }),
        answer(10, "setPrecision",
               [](Layer *it, int type) {
                   record("{\"event\": \"layer_precision\", \"layer\": \"%s\", \"type\": %d}",
                          it->name.c_str(), type);
               }),
    });
    table = functions.functions;
}

Network::Network(unsigned given, Handle *owner) : Object{}, flags(given), builder(owner) {
    static const Table<Network> functions(
        {
            answer(12, "getNbLayers", [](Network *it) { return int(it->graph.layers.size()); }),
            answer(13, "getLayer", [](Network *it, int i) { return handle(it->graph.layers[i]); }),
            answer(14, "getNbInputs", [](Network *it) { return it->graph.count(true); }),
            answer(15, "getInput",
                   [](Network *it, int i) { return handle(it->graph.at(true, i)); }),
            answer(16, "getNbOutputs", [](Network *it) { return it->graph.count(false); }),
            answer(17, "getOutput",
                   [](Network *it, int i) { return handle(it->graph.at(false, i)); }),
            answer(31, "getName", [](Network *) { return "network"; }),
            answer(33, "hasImplicitBatchDimension", [](Network *) { return false; }),
            answer(48, "getErrorRecorder", [](Network *) { return (void *)nullptr; }),
            answer(63, "getBuilder", [](Network *it) { return it->builder; }),
            answer(64, "getFlags", [](Network *it) { return it->flags; }),
            answer(65, "getFlag",
                   [](Network *it, int flag) { return bool(it->flags >> flag & 1); }),
        },
        {30, 47});
    table = functions.functions;
}

// --- building ---

struct HostMemory : Object {
    static constexpr const char *NAME = "IHostMemory";
    string bytes;
    explicit HostMemory(string given) : Object{}, bytes(std::move(given)) {
        static const Table<HostMemory> functions({
            answer(2, "data", [](HostMemory *it) { return it->bytes.data(); }),
            answer(3, "size", [](HostMemory *it) { return it->bytes.size(); }),
            answer(4, "type", [](HostMemory *) { return 2; }),
        });
        table = functions.functions;
    }
};

struct Profile : Object {
    static constexpr const char *NAME = "IOptimizationProfile";
    static constexpr Places GONE{4, 6};
    std::map<string, Dims[3]> shapes;  // minimum, optimum, maximum
    Profile() : Object{} {
        static const Table<Profile> functions({
            answer(2, "setDimensions",
                   [](Profile *it, const char *input, int which, const Dims *dims) {
                       it->shapes[input][which] = *dims;
                       return true;
                   }),
            answer(
                3, "getDimensions",
                [](Profile *it, const char *input, int which) { return it->shapes[input][which]; }),
            answer(9, "isValid", [](Profile *) { return true; }),
        });
        table = functions.functions;
    }
    string json() const {
        string text;
        for (const auto &[input, sizes] : shapes) {
            text += (text.empty() ? "{\"" : ", \"") + input + "\": [";
            for (int which = 0; which < 3; which++) {
                text += which ? ", [" : "[";
                for (int axis = 0; axis < sizes[which].rank; axis++)
                    text += (axis ? ", " : "") + std::to_string(sizes[which].size[axis]);
                text += "]";
            }
            text += "]";
        }
        return text.empty() ? "{}" : text + "}";
    }
};

static int current_gpu() {
    int device = 0;
    cudaGetDevice(&device);
    return visible_gpu(device);
}

static int current_capability() { return capability_of(current_gpu()); }

// The text that a timing cache of this GPU begins with.
static string timing_header() {
    return "simulated timings " + std::to_string(current_capability()) + '\n';
}

struct TimingCache : Object {
    static constexpr const char *NAME = "ITimingCache";
    string bytes;
    explicit TimingCache(string given) : Object{}, bytes(std::move(given)) {
        static const Table<TimingCache> functions({
            answer(2, "serialize",
                   [](TimingCache *it) { return handle(new HostMemory(it->bytes)); }),
            answer(3, "combine", [](TimingCache *, void *, bool) { return true; }),
        });
        table = functions.functions;
    }
};

// The flags of TensorRT 10; TensorRT 11 dropped one of them, which moved those behind it.
enum Flag { FP16 = 0, INT8 = 1, REFIT = 4, TF32 = 6, FP8 = 15, BF16 = 17, STRIP_PLAN = 19 };
static int numbered(int flag) { return TENSORRT > 10 && flag > 11 ? flag + 1 : flag; }

struct Config : Object {
    static constexpr const char *NAME = "IBuilderConfig";
    static constexpr Places GONE{6, 7, 29, 30, 31, 32, 33, 34, 35, 36, 37};
    unsigned flags = 1 << TF32;  // on unless it is switched off
    int level = 3, hardware = 0, verbosity = 0;
    size_t workspace = 0;
    std::vector<Profile *> profiles;
    Handle *timings = nullptr;
    void *monitor = nullptr;
    Config() : Object{} {
        static const Table<Config> functions(
            {
                answer(8, "setFlags", [](Config *it, unsigned flags) { it->flags = flags; }),
                answer(9, "getFlags", [](Config *it) { return it->flags; }),
                answer(10, "clearFlag",
                       [](Config *it, int flag) { it->flags &= ~(1u << numbered(flag)); }),
                answer(11, "setFlag",
                       [](Config *it, int flag) { it->flags |= 1u << numbered(flag); }),
                answer(12, "getFlag",
                       [](Config *it, int flag) { return bool(it->flags >> numbered(flag) & 1); }),
                answer(25, "addOptimizationProfile",
                       [](Config *it, Handle *profile) {
                           it->profiles.push_back(behind<Profile>(profile));
                           return int(it->profiles.size()) - 1;
                       }),
                answer(26, "getNbOptimizationProfiles",
                       [](Config *it) { return int(it->profiles.size()); }),
                answer(27, "setProfilingVerbosity",
                       [](Config *it, int value) { it->verbosity = value; }),
                answer(28, "getProfilingVerbosity", [](Config *it) { return it->verbosity; }),
                answer(40, "createTimingCache",
                       [](Config *, const char *bytes, size_t size) {
                           return handle(new TimingCache(string(bytes ? bytes : "", size)));
                       }),
                answer(41, "setTimingCache",
                       [](Config *it, Handle *cache, bool ignore_mismatch) {
                           const string &bytes = behind<TimingCache>(cache)->bytes,
                                        header = timing_header();
                           bool fits =
                               bytes.empty() || bytes.compare(0, header.size(), header) == 0;
                           record("{\"event\": \"timing_cache\", \"bytes\": %zu, \"fits\": %s}",
                                  bytes.size(), fits ? "true" : "false");
                           if (fits || ignore_mismatch) it->timings = cache;
                           return fits || ignore_mismatch;
                       }),
                answer(42, "getTimingCache", [](Config *it) { return it->timings; }),
                answer(43, "setMemoryPoolLimit",
                       [](Config *it, int pool, size_t size) {
                           if (pool == 0) it->workspace = size;
                       }),
                answer(44, "getMemoryPoolLimit",
                       [](Config *it, int pool) { return pool == 0 ? it->workspace : size_t{0}; }),
                answer(47, "setBuilderOptimizationLevel",
                       [](Config *it, int level) { it->level = level; }),
                answer(48, "getBuilderOptimizationLevel", [](Config *it) { return it->level; }),
                answer(49, "setHardwareCompatibilityLevel",
                       [](Config *it, int value) { it->hardware = value; }),
                answer(50, "getHardwareCompatibilityLevel",
                       [](Config *it) { return it->hardware; }),
                answer(56, "setProgressMonitor",
                       [](Config *it, void *monitor) { it->monitor = monitor; }),
                answer(57, "getProgressMonitor", [](Config *it) { return it->monitor; }),
            },
            {2, 4, 13, 18, 20, 23, 33, 36, 38, 45, 54, 58, 60, 62, 64});
        table = functions.functions;
    }
    // What the log and the engine say about the build, without the closing brace.
    string json(const Network &network) const {
        char text[512];
        snprintf(text, sizeof text,
                 "{\"event\": \"build\", \"gpu\": %d, \"capability\": %d, \"flags\": %u, "
                 "\"strongly_typed\": %s, \"level\": %d, \"hardware\": %d, \"verbosity\": %d, "
                 "\"workspace\": %zu, \"timing_cache\": %s, \"profiles\": [",
                 current_gpu(), current_capability(), flags,
                 network.is_strongly_typed() ? "true" : "false", level, hardware, verbosity,
                 workspace, timings ? "true" : "false");
        string json = text;
        for (const Profile *profile : profiles)
            json += (profile == profiles[0] ? "" : ", ") + profile->json();
        return json + ']';
    }
};

static constexpr const char MAGIC[] = "SIMULATED TENSORRT ENGINE ";

struct Builder : Object {
    static constexpr const char *NAME = "IBuilder";
    static constexpr Places GONE{2, 3, 13};
    void *logger;
    Handle *self;
    explicit Builder(void *given);
    Handle *build(Network &network, Config &config);
    string refusal(const Network &network, const Config &config);
};

// Why TensorRT would not build this, in its own words where they are known.
string Builder::refusal(const Network &network, const Config &config) {
    char text[256];
    if (network.graph.is_struck() && *script_text("build_error", text, sizeof text)) return text;
    unsigned types = 1u << FP16 | 1u << INT8 | 1u << FP8 | 1u << BF16;
    if (network.is_strongly_typed() && config.flags & types)
        return "Error Code 3: API Usage Error (precision flags are not allowed in strongly typed "
               "networks)";
    if (!network.is_strongly_typed() && network.graph.has_integers && !(config.flags >> INT8 & 1))
        return "Error Code 4: Internal Error (Int8 precision has been set for a layer or layer "
               "output, but "
               "int8 is not configured in the builder)";
    for (const Tensor *input : network.graph.tensors) {
        bool is_dynamic = false;
        for (int axis = 0; axis < input->dims.rank; axis++)
            is_dynamic |= input->dims.size[axis] < 0;
        if (!input->is_input || !is_dynamic) continue;
        if (config.profiles.empty() || !config.profiles[0]->shapes.count(input->name))
            return "Error Code 4: API Usage Error (Network has dynamic or shape inputs, but no "
                   "optimization "
                   "profile has been defined for " +
                   input->name + ")";
    }
    return "";
}

Handle *Builder::build(Network &network, Config &config) {
    static const char PHASE[] = "Building engine";
    string options = config.json(network);
    record("%s}", options.c_str());
    if (network.graph.is_struck("crash", "build")) raise(SIGSEGV);
    string reason = refusal(network, config);
    if (!reason.empty()) return tell(logger, ERROR, reason), nullptr;
    bool hangs = network.graph.is_struck("hang", "build"), goes_on = true;
    const int steps = 4;
    void *none = nullptr;
    if (config.monitor) call<void>(config.monitor, 4, PHASE, none, steps);
    for (int step = 0; goes_on && (hangs || step < steps); step++) {
        if (config.monitor) goes_on = call<bool>(config.monitor, 5, PHASE, hangs ? 0 : step);
        if (hangs) usleep(50000);
    }
    if (config.monitor) call<void>(config.monitor, 6, PHASE);
    if (!goes_on)
        return tell(logger, ERROR, "the build was stopped by its progress monitor"), nullptr;
    if (config.timings) behind<TimingCache>(config.timings)->bytes = timing_header();
    bool is_stripped = config.flags >> STRIP_PLAN & 1;
    Reply onnx = ask(is_stripped ? "strip" : "onnx", network.graph.number);
    if (onnx.failed) return tell(logger, ERROR, onnx.text), nullptr;
    string bytes = MAGIC + options + "}\n" + string(onnx.text, onnx.size);
    return handle(new HostMemory(std::move(bytes)));
}

static Object *registry();

Builder::Builder(void *given) : Object{}, logger(given), self(handle(this)) {
    static const Table<Builder> functions(
        {
            answer(2, "platformHasFastFp16", [](Builder *) { return true; }),
            answer(3, "platformHasFastInt8", [](Builder *) { return true; }),
            answer(4, "getMaxDLABatchSize", [](Builder *) { return 0; }),
            answer(5, "getNbDLACores", [](Builder *) { return 0; }),
            answer(7, "createBuilderConfig", [](Builder *) { return handle(new Config); }),
            answer(
                8, "createNetworkV2",
                [](Builder *it, unsigned flags) { return handle(new Network(flags, it->self)); }),
            answer(9, "createOptimizationProfile", [](Builder *) { return handle(new Profile); }),
            answer(11, "getErrorRecorder", [](Builder *) { return (void *)nullptr; }),
            answer(13, "platformHasTf32", [](Builder *) { return true; }),
            answer(14, "buildSerializedNetwork",
                   [](Builder *it, void *network, void *config) {
                       return it->build(*behind<Network>(network), *behind<Config>(config));
                   }),
            answer(16, "getLogger", [](Builder *it) { return it->logger; }),
            answer(19, "getPluginRegistry", [](Builder *) { return registry(); }),
        },
        {10, 12, 17});
    table = functions.functions;
}

// --- running ---

struct Engine : Object {
    static constexpr const char *NAME = "ICudaEngine";
    static constexpr Places GONE{6, 7, 11, 15, 41, 43, 44, 45};
    void *logger;
    Graph graph;
    string options;  // of its build, as JSON
    void *memory;    // on the device
    Handle *self;
    Engine(void *logger, string options, Graph graph, void *memory);
    int profiles() const;
};

struct Context : Object {
    static constexpr const char *NAME = "IExecutionContext";
    static constexpr Places GONE{13};
    Engine *engine;
    std::map<string, Dims> shapes;        // of inputs
    std::map<string, void *> addresses;   // of inputs and outputs
    std::map<string, void *> allocators;  // of outputs whose sizes the caller does not know
    int profile = 0;
    explicit Context(Engine *engine);
    Dims shape(const char *name);
    string inputs() const;
    bool enqueue();
};

#ifdef RTX
#include "rtx.hpp"
#endif

struct Inspector : Object {
    static constexpr const char *NAME = "IEngineInspector";
    Engine *engine;
    string text;
    explicit Inspector(Engine *given) : Object{}, engine(given) {
        static const Table<Inspector> functions({
            answer(3, "setExecutionContext", [](Inspector *, void *) { return true; }),
            answer(6, "getEngineInformation",
                   [](Inspector *it, int) {
                       Reply reply = ask("inspect", it->engine->graph.number, it->engine->options);
                       return (it->text = reply.text).c_str();
                   }),
        });
        table = functions.functions;
    }
};

struct Refitter : Object {
    static constexpr const char *NAME = "IRefitter";
    static constexpr Places GONE{7, 8, 9, 10};
    Engine *engine;
    void *logger;
    Refitter(Engine *given, void *log) : Object{}, engine(given), logger(log) {
        static const Table<Refitter> functions({
            answer(4, "refitCudaEngine",
                   [](Refitter *it) {
                       record("{\"event\": \"refit\"}");
                       return true;
                   }),
            answer(5, "getMissing", [](Refitter *, int, void *, void *) { return 0; }),
            answer(14, "getMissingWeights", [](Refitter *, int, void *) { return 0; }),
            answer(16, "getLogger", [](Refitter *it) { return it->logger; }),
        });
        table = functions.functions;
    }
};

Engine *engine_of(void *refitter) { return behind<Refitter>(refitter)->engine; }
void refit(Engine *engine, long graph) { engine->graph.number = graph; }

static string json_number(const string &json, const char *key) {
    size_t at = json.find('"' + string(key) + "\": ");
    return at == string::npos ? ""
                              : json.substr(at + strlen(key) + 4,
                                            json.find_first_of(",}", at) - at - strlen(key) - 4);
}

int Engine::profiles() const {
    int count = 0;
    size_t at = options.find("\"profiles\": [");
    for (at = options.find('{', at); at != string::npos; at = options.find('{', at + 1)) count++;
    return count ? count : 1;
}

// Whoever deletes the handle of an engine gives its memory back.
static Handle *handle_of_engine(Engine *engine) {
    static const Table<Handle> table({answer(1, "~ICudaEngine",
                                             [](Handle *deleted) {
                                                 void *&memory = behind<Engine>(deleted)->memory;
                                                 cudaFree(memory);
                                                 memory = nullptr;
                                             })},
                                     {0});
    return new Handle{table.functions, engine};
}

Engine::Engine(void *log, string given, Graph held, void *allocated)
    : Object{},
      logger(log),
      graph(std::move(held)),
      options(std::move(given)),
      memory(allocated),
      self(handle_of_engine(this)) {
    static const Table<Engine> functions(
        {
            answer(3, "getNbLayers", [](Engine *it) { return int(it->graph.layers.size()); }),
            answer(4, "serialize",
                   [](Engine *it) {
                       Reply onnx = ask("onnx", it->graph.number);
                       return handle(new HostMemory(MAGIC + it->options + '\n' +
                                                    string(onnx.text, onnx.size)));
                   }),
            answer(5, "createExecutionContext",
                   [](Engine *it, int) { return handle(new Context(it)); }),
            answer(6, "createExecutionContextWithoutDeviceMemory",
                   [](Engine *it) { return handle(new Context(it)); }),
            answer(7, "getDeviceMemorySize", [](Engine *) { return size_t{1} << 20; }),
            answer(8, "isRefittable",
                   [](Engine *it) {
                       return bool(atol(json_number(it->options, "flags").c_str()) >> REFIT & 1);
                   }),
            answer(9, "getName", [](Engine *) { return "network"; }),
            answer(10, "getNbOptimizationProfiles", [](Engine *it) { return it->profiles(); }),
            answer(14, "getErrorRecorder", [](Engine *) { return (void *)nullptr; }),
            answer(15, "hasImplicitBatchDimension", [](Engine *) { return false; }),
            answer(17, "getProfilingVerbosity",
                   [](Engine *it) { return atoi(json_number(it->options, "verbosity").c_str()); }),
            answer(18, "createEngineInspector",
                   [](Engine *it) { return handle(new Inspector(it)); }),
            answer(19, "getTensorShape",
                   [](Engine *it, const char *name) {
                       const Tensor *tensor = it->graph.find(name);
                       return tensor ? tensor->dims : Dims{-1};
                   }),
            answer(20, "getTensorDataType",
                   [](Engine *it, const char *name) {
                       const Tensor *tensor = it->graph.find(name);
                       return tensor ? tensor->type : 0;
                   }),
            answer(21, "getTensorLocation", [](Engine *, const char *) { return 0; }),
            answer(22, "isShapeInferenceIO", [](Engine *, const char *) { return false; }),
            answer(23, "getTensorIOMode",
                   [](Engine *it, const char *name) {
                       const Tensor *tensor = it->graph.find(name);
                       return tensor ? (tensor->is_input ? 1 : 2) : 0;
                   }),
            answer(30, "getNbIOTensors", [](Engine *it) { return int(it->graph.tensors.size()); }),
            answer(31, "getIOTensorName",
                   [](Engine *it, int index) { return it->graph.tensors[index]->name.c_str(); }),
            answer(32, "getHardwareCompatibilityLevel",
                   [](Engine *it) { return atoi(json_number(it->options, "hardware").c_str()); }),
            answer(33, "getNbAuxStreams", [](Engine *) { return 0; }),
            answer(41, "getDeviceMemorySizeForProfile",
                   [](Engine *, int) { return size_t{1} << 20; }),
            answer(52, "getDeviceMemorySizeV2", [](Engine *) { return int64_t{1} << 20; }),
            answer(53, "getDeviceMemorySizeForProfileV2",
                   [](Engine *, int) { return int64_t{1} << 20; }),
        },
        {0, 1, 13});
    table = functions.functions;
#ifdef RTX
    static const auto more = Table<Engine>(functions).with(rtx_engine());
    table = more.functions;
#endif
}

// One line for each input: `TYPE RANK SIZE... ADDRESS NAME`.
string Context::inputs() const {
    string text;
    for (const Tensor *tensor : engine->graph.tensors) {
        if (!tensor->is_input) continue;
        auto shape = shapes.find(tensor->name);
        auto address = addresses.find(tensor->name);
        const Dims &dims = shape == shapes.end() ? tensor->dims : shape->second;
        text += std::to_string(tensor->type) + ' ' + std::to_string(dims.rank);
        write_dims(text, dims);
        text += ' ' + std::to_string(address == addresses.end() ? 0 : uintptr_t(address->second));
        text += ' ' + tensor->name + '\n';
    }
    return text;
}

// Outputs come back as `TYPE RANK SIZE... ADDRESS BYTES NAME`; without data, for their shapes only.
template <class Use>
static bool read_outputs(const char *text, Use use) {
    while (*text) {
        strtol(text, (char **)&text, 10);
        int rank = strtol(text, (char **)&text, 10);
        Dims dims = read_dims(text, rank);
        auto *data = reinterpret_cast<const char *>(strtoul(text, (char **)&text, 10));
        size_t bytes = strtoul(text, (char **)&text, 10);
        text++;
        const char *end = text + strcspn(text, "\n");
        use(string(text, end), dims, data, bytes);
        text = end + (*end == '\n');
    }
    return true;
}

Dims Context::shape(const char *name) {
    const Tensor *tensor = engine->graph.find(name);
    if (!tensor) return Dims{-1};
    Dims found = tensor->dims;
    if (tensor->is_input) return shapes.count(name) ? shapes[name] : found;
    bool is_known = true;
    for (int axis = 0; axis < found.rank; axis++) is_known &= found.size[axis] >= 0;
    if (is_known) return found;
    Reply reply = ask("shapes", engine->graph.number, inputs());
    if (reply.failed) return tell(engine->logger, ERROR, reply.text), found;
    read_outputs(reply.text, [&](const string &output, const Dims &dims, const char *, size_t) {
        if (output == name) found = dims;
    });
    return found;
}

bool Context::enqueue() {
    if (engine->graph.is_struck("crash", "run")) raise(SIGSEGV);
    Reply reply = ask("run", engine->graph.number, inputs());
    if (reply.failed) return tell(engine->logger, ERROR, reply.text), false;
    return read_outputs(
        reply.text, [&](const string &name, const Dims &dims, const char *data, size_t bytes) {
            void *to = addresses.count(name) ? addresses[name] : nullptr;
            if (void *allocator = allocators.count(name) ? allocators[name] : nullptr) {
                to = call<void *>(allocator, 4, name.c_str(), to, uint64_t(bytes), uint64_t(256));
                call<void>(allocator, 6, name.c_str(), &dims);
            }
            if (to) memcpy(to, data, bytes);
        });
}

Context::Context(Engine *given) : Object{}, engine(given) {
    static const Table<Context> functions(
        {
            answer(7, "getEngine", [](Context *it) { return it->engine->self; }),
            answer(11, "getOptimizationProfile", [](Context *it) { return it->profile; }),
            answer(12, "allInputDimensionsSpecified", [](Context *) { return true; }),
            answer(13, "allInputShapesSpecified", [](Context *) { return true; }),
            answer(15, "getErrorRecorder", [](Context *) { return (void *)nullptr; }),
            answer(17, "setOptimizationProfileAsync",
                   [](Context *it, int index, void *) {
                       it->profile = index;
                       record("{\"event\": \"profile\", \"index\": %d}", index);
                       return index < it->engine->profiles();
                   }),
            answer(21, "setInputShape",
                   [](Context *it, const char *name, const Dims *dims) {
                       it->shapes[name] = *dims;
                       return it->engine->graph.find(name) != nullptr;
                   }),
            answer(22, "getTensorShape",
                   [](Context *it, const char *name) { return it->shape(name); }),
            answer(24, "setTensorAddress",
                   [](Context *it, const char *name, void *address) {
                       it->addresses[name] = address;
                       return true;
                   }),
            answer(25, "getTensorAddress",
                   [](Context *it, const char *name) { return it->addresses[name]; }),
            answer(26, "setInputTensorAddress",
                   [](Context *it, const char *name, void *address) {
                       it->addresses[name] = address;
                       return true;
                   }),
            answer(27, "setOutputTensorAddress",
                   [](Context *it, const char *name, void *address) {
                       it->addresses[name] = address;
                       return true;
                   }),
            answer(28, "inferShapes", [](Context *, int, void *) { return 0; }),
            answer(31, "getOutputTensorAddress",
                   [](Context *it, const char *name) { return it->addresses[name]; }),
            answer(32, "setOutputAllocator",
                   [](Context *it, const char *name, void *allocator) {
                       it->allocators[name] = allocator;
                       return true;
                   }),
            answer(33, "getOutputAllocator",
                   [](Context *it, const char *name) { return it->allocators[name]; }),
            answer(37, "enqueueV3",
                   [](Context *it, void *) {
                       auto run = [](void *context) { static_cast<Context *>(context)->enqueue(); };
                       return lab_capture(run, it) || it->enqueue();
                   }),
            answer(48, "updateDeviceMemorySizeForShapes", [](Context *) { return size_t{1} << 20; }),
        },
        {0, 1, 3, 5, 8, 10, 14, 18, 38, 40, 42, 49});
    table = functions.functions;
}

struct Runtime : Object {
    static constexpr const char *NAME = "IRuntime";
    static constexpr Places GONE{4};
    void *logger;
    explicit Runtime(void *given);
    Handle *load(const char *bytes, size_t size);
};

Handle *Runtime::load(const char *bytes, size_t size) {
    string all(bytes, size);
    // A real engine of TensorRT for RTX is followed by what a simulated one holds.
    size_t start = all.rfind(MAGIC), end = all.find('\n', start == string::npos ? 0 : start);
    bool is_ours = start != string::npos && end != string::npos;
    string options = is_ours ? all.substr(start + strlen(MAGIC), end - start - strlen(MAGIC)) : "";
    int built_for = is_ours ? atoi(json_number(options, "capability").c_str()) : 0;
    bool fits = built_for == current_capability() || json_number(options, "hardware") != "0";
    record("{\"event\": \"deserialize\", \"gpu\": %d, \"bytes\": %zu, \"valid\": %s, \"fits\": %s}",
           current_gpu(), size, is_ours ? "true" : "false", fits ? "true" : "false");
    if (!is_ours)
        return tell(logger, ERROR,
                    "Error Code 1: Serialization (Serialization assertion magicTagRead == "
                    "kMAGIC_TAG failed. Magic tag does not match)"),
               nullptr;
    if (!fits) {
        char text[200];
        snprintf(text, sizeof text,
                 "Error Code 6: API Usage Error (The engine plan file is generated on an "
                 "incompatible device, "
                 "expecting compute %d.%d got compute %d.%d, please rebuild.)",
                 current_capability() / 10, current_capability() % 10, built_for / 10,
                 built_for % 10);
        return tell(logger, ERROR, text), nullptr;
    }
    Graph graph;
    if (!graph.read(all.data() + end + 1, long(size - end - 1), nullptr))
        return tell(logger, ERROR, graph.error), nullptr;
    if (graph.is_struck("crash", "load")) raise(SIGSEGV);
    void *memory = nullptr;
    if (graph.is_struck()) size += size_t(script_number("engine_mb", 0)) << 20;
    if (cudaMalloc(&memory, size))
        return tell(logger, ERROR,
                    "Error Code 2: OutOfMemory (Requested size was " + std::to_string(size) +
                        " bytes.)"),
               nullptr;
    return (new Engine(logger, options, graph, memory))->self;
}

Runtime::Runtime(void *given) : Object{}, logger(given) {
    static const Table<Runtime> functions(
        {
            answer(
                3, "deserializeCudaEngine",
                [](Runtime *it, const char *bytes, size_t size) { return it->load(bytes, size); }),
            answer(10, "getErrorRecorder", [](Runtime *) { return (void *)nullptr; }),
            answer(11, "getLogger", [](Runtime *it) { return it->logger; }),
            answer(18, "getPluginRegistry", [](Runtime *) { return registry(); }),
        },
        {5, 8, 9, 12, 14, 16, 21});
    table = functions.functions;
}

// --- plugins ---

struct InterfaceInfo {
    const char *kind;
    int32_t major, minor;
};

Plugin::Plugin(const char *given) : Object{}, name(given) {
    static const Table<Plugin> functions(
        {
            answer(0, "getAPILanguage", [](Plugin *) { return 0; }),
            answer(1, "getInterfaceInfo",
                   [](Plugin *) { return InterfaceInfo{"PLUGIN CREATOR_V1", 1, 0}; }),
            answer(4, "getPluginName", [](Plugin *it) { return it->name; }),
            answer(5, "getPluginVersion", [](Plugin *) { return "1"; }),
            answer(10, "getPluginNamespace", [](Plugin *) { return ""; }),
        },
        {9});
    table = functions.functions;
}

static std::vector<Plugin *> registered;
const std::vector<Plugin *> &plugins() { return registered; }

extern "C" void lab_register(const char *plugin) {
    for (Plugin *known : registered)
        if (!strcmp(known->name, plugin)) return;
    registered.push_back(new Plugin(plugin));
}

struct Registry : Object {
    static constexpr const char *NAME = "IPluginRegistry";
    Registry() : Object{} {
        auto list = [](Registry *, int *count) {
            *count = int(registered.size());
            return registered.data();
        };
        static const Table<Registry> functions({
            answer(1, "getPluginCreatorList", list),
            answer(13, "getAllCreators", list),
        }, {8});
        table = functions.functions;
    }
};

static Object *registry() {
    static Registry only;
    return &only;
}

// --- what the libraries' headers call ---

extern "C" {
void *createInferBuilder_INTERNAL(void *logger, int) { return (new Builder(logger))->self; }
void *createInferRuntime_INTERNAL(void *logger, int) { return handle(new Runtime(logger)); }
void *createInferRefitter_INTERNAL(void *engine, void *logger, int) {
    return handle(new Refitter(behind<Engine>(engine), logger));
}
int getInferLibVersion() { return TENSORRT > 10 ? 110400 : 101601; }
void *getPluginRegistry() { return registry(); }
void *getBuilderPluginRegistry(int) { return registry(); }
void *getLogger() { return nullptr; }
}

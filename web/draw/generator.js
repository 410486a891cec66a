"use strict";
// The generator, in a thread of its own: loaded, started, and asked for one output at a time.

const PARTS = {};  // base64 by name; each script in parts/ adds one
const LOST = "A file of the page is missing, or the server sends it as another type than " +
  "text/javascript, which its header X-Content-Type-Options: nosniff then keeps out: ";

// This function is the whole of that thread's code, after onnxruntime-web itself (`ort`).
function work() {
  let session;

  async function begin({module, wasm, graph, providers}) {
    const address = URL.createObjectURL(new Blob([module], {type: "text/javascript"}));
    ort.env.wasm.wasmPaths = {mjs: address};
    ort.env.wasm.wasmBinary = wasm;
    for (const provider of providers) {
      try {
        session = await ort.InferenceSession.create(graph, {executionProviders: [provider]});
        return {provider, threads: ort.env.wasm.numThreads};
      } catch (error) {
        if (provider === providers.at(-1)) throw error;
      }
    }
  }

  async function translate({pixels, shape}) {
    const began = performance.now();
    const found = await session.run({input: new ort.Tensor("float32", pixels, shape)});
    return {pixels: found.output.data, ms: performance.now() - began};
  }

  addEventListener("securitypolicyviolation", ({disposition, effectiveDirective, blockedURI}) => {
    postMessage({violation: {disposition, effectiveDirective, blockedURI}});
  });
  onmessage = async ({data}) => {
    try {
      const reply = await (session ? translate(data) : begin(data));
      postMessage(reply, reply.pixels ? [reply.pixels.buffer] : []);
    } catch (error) {
      postMessage({error: String(error)});
    }
  };
}

// --- Loading ---

let loaded = 0;  // characters of all parts

function showLoaded() {
  const [now, all] = [loaded, MODEL.size].map(n => (n / 1e6).toFixed(1));
  by("status").textContent = `Loading: ${now} of ${all} MB`;
  by("loaded").value = loaded / MODEL.size;
}

function decoded(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const letters = atob(text), bytes = new Uint8Array(letters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
  return bytes;
}

async function part(name) {
  const script = document.createElement("script");
  script.src = `parts/${name}.js`;
  await new Promise((resolve, reject) => {
    script.onload = resolve;
    script.onerror = () => reject(new Error(LOST + script.src));
    document.head.append(script);
  });
  script.remove();
  const text = PARTS[name];
  delete PARTS[name];
  loaded += text.length;
  showLoaded();
  return decoded(text);
}

async function unpacked(name) {
  const names = Array.from({length: MODEL.parts[name]}, (_, number) => `${name}-${number}`);
  const packed = new Blob(await Promise.all(names.map(part)));
  const stream = packed.stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

async function usableGpu() {
  if (MODEL.precision === "int8") return false;  // which WebGPU does not know
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  const computes = adapter && !adapter.info?.isFallbackAdapter;  // not one that software imitates
  return computes && (MODEL.precision === "fp32" || adapter.features.has("shader-f16"));
}

// --- The thread ---

let worker, answer;

function ask(message, transfer = []) {
  return new Promise((resolve, reject) => {
    answer = reply => reply.error ? reject(new Error(reply.error)) : resolve(reply);
    worker.postMessage(message, transfer);
  });
}

function hear({data}) {
  if (data.violation) refused(data.violation); else answer(data);
}

async function begin() {
  by("loaded").hidden = false;
  showLoaded();
  const parts = ["library", "module", "wasm", "graph"].map(unpacked);
  const [library, module, wasm, graph] = await Promise.all(parts);
  by("status").textContent = "Starting the generator ...";
  by("loaded").removeAttribute("value");
  const providers = await usableGpu() ? ["webgpu", "wasm"] : ["wasm"];
  const code = new Blob([library, `\n(${work})();`], {type: "text/javascript"});
  worker = new Worker(URL.createObjectURL(code));
  worker.onmessage = hear;
  worker.onerror = event => answer({error: event.message ?? "its thread was kept out"});
  const {provider, threads} = await ask({module, wasm, graph, providers}, [wasm, graph]);
  const places = {webgpu: "on the graphics card", wasm: `on ${threads} thread${threads > 1 ? "s" : ""}`};
  by("status").textContent = `Runs in this browser, ${places[provider]}.`;
  by("loaded").hidden = true;
}

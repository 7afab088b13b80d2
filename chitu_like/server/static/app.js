// The playground: one conversation, streamed.

import { render } from "./markdown.js";
import { apiKey, samplingFields, start as startSettings, systemPrompt } from "./settings.js";
import { ServiceError, getJson, streamChat } from "./stream.js";

const byId = (id) => document.getElementById(id);
let history = [];
let stopping = null;
let totalTokens = 0;

/** Ends worth a word; to have said all is none. */
const ENDINGS = { length: "cut at the token limit", stopped: "stopped" };

// ---- drawing ----

function addMessage(role, text) {
  const item = document.createElement("li");
  item.className = `message ${role}`;
  const body = document.createElement("div");
  body.className = "text";
  body.textContent = text;
  item.append(body);
  byId("messages").append(item);
  byId("welcome").hidden = true;
  return item;
}

function addLine(item, className, ...children) {
  const line = document.createElement("div");
  line.className = className;
  line.append(...children);
  item.append(line);
  return line;
}

function showFacts(line, facts) {
  line.replaceChildren(...facts.map(([value, name]) => {
    const fact = document.createElement("span");
    const number = document.createElement("b");
    number.textContent = value;
    fact.append(number, ` ${name}`);
    return fact;
  }));
}

/** Follow the text unless the reader has scrolled up to read. */
function keepInView(change) {
  const box = byId("scroll");
  const follows = box.scrollHeight - box.scrollTop - box.clientHeight < 80;
  change();
  if (follows) box.scrollTop = box.scrollHeight;
}

function setWriting(isWriting) {
  byId("send").hidden = isWriting;
  byId("stop").hidden = !isWriting;
}

// ---- one answer ----

/** What is measured while an answer comes: seconds to the first token, tokens a second after it. */
class Pace {
  constructor() {
    this.asked = performance.now();
    this.first = null;
    this.last = null;
    this.tokens = 0;
  }

  note(tokens) {
    if (tokens === this.tokens) return;
    this.last = performance.now();
    this.first ??= this.last;
    this.tokens = tokens;
  }

  facts() {
    if (this.first === null) return [];
    const facts = [[`${Math.round(this.first - this.asked)} ms`, "to first token"]];
    const seconds = (this.last - this.first) / 1000;
    if (this.tokens > 1 && seconds > 0) facts.push([((this.tokens - 1) / seconds).toFixed(1), "tokens/s"]);
    facts.push([String(this.tokens), this.tokens === 1 ? "token" : "tokens"]);
    return facts;
  }
}

async function answer() {
  const item = addMessage("assistant", "");
  item.classList.add("writing");
  const facts = addLine(item, "facts");
  const pace = new Pace();
  const system = systemPrompt();
  const conversation = history;
  const messages = [...(system ? [{ role: "system", content: system }] : []), ...conversation];
  stopping = new AbortController();
  setWriting(true);
  let text = "";
  let ending = null;
  let isDrawing = false;
  const draw = () => {
    isDrawing = false;
    keepInView(() => {
      render(item.querySelector(".text"), text);
      showFacts(facts, pace.facts());
      facts.append(ENDINGS[ending] ?? "");
    });
  };
  try {
    for await (const chunk of streamChat({ messages, ...samplingFields() }, apiKey(), stopping.signal)) {
      const choice = chunk.choices[0];
      if (!choice) continue;
      // The opening chunk names only the role.
      if (!choice.delta.role) pace.note(chunk.usage.completion_tokens);
      text += choice.delta.content ?? "";
      ending = choice.finish_reason ?? ending;
      if (!isDrawing) {
        isDrawing = true;
        requestAnimationFrame(draw);
      }
    }
  } catch (error) {
    if (error.name === "AbortError") ending = "stopped";
    else addLine(item, "error", error instanceof ServiceError ? error.message : "the service cannot be reached");
  }
  draw();
  item.classList.remove("writing");
  if (text) conversation.push({ role: "assistant", content: text });
  else conversation.pop();
  if (conversation === history) {
    totalTokens += pace.tokens;
    byId("total").textContent = `${totalTokens} tokens in this chat.`;
  }
  stopping = null;
  setWriting(false);
  byId("prompt").focus();
}

function send(text) {
  if (!text.trim() || stopping) return;
  history.push({ role: "user", content: text });
  addMessage("user", text);
  byId("prompt").value = "";
  fitPrompt();
  byId("scroll").scrollTop = byId("scroll").scrollHeight;
  answer();
}

function reset() {
  stopping?.abort();
  history = [];
  totalTokens = 0;
  byId("total").textContent = "";
  byId("messages").replaceChildren();
  byId("welcome").hidden = false;
  byId("prompt").focus();
}

// ---- the live strip ----

async function showLoad() {
  if (document.hidden) return;
  try {
    const load = await getJson("/load");
    byId("running").textContent = load.num_requests_running;
    byId("waiting").textContent = load.num_requests_waiting;
    byId("kv").textContent = `${Math.round(100 * load.kv_cache_usage)}%`;
    byId("kv-bar").style.width = `${100 * load.kv_cache_usage}%`;
    byId("load").classList.remove("offline");
    if (load.state !== "ready") byId("model").textContent = load.state;
    else if (!byId("model").dataset.known) await showModel();
  } catch {
    byId("load").classList.add("offline");
    byId("model").textContent = "not reachable";
    delete byId("model").dataset.known;
  }
}

async function showModel() {
  try {
    const model = (await getJson("/v1/models", apiKey())).data[0];
    byId("model").textContent = `${model.id} · ${model.max_model_len} tokens of context`;
    byId("model").dataset.known = "yes";
  } catch (error) {
    byId("model").textContent = error.message;
  }
}

// ---- start ----

function fitPrompt() {
  const box = byId("prompt");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight}px`;
}

startSettings();
byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send(byId("prompt").value);
});
byId("prompt").addEventListener("input", fitPrompt);
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send(byId("prompt").value);
  }
});
byId("stop").addEventListener("click", () => stopping?.abort());
byId("reset").addEventListener("click", reset);
byId("ideas").addEventListener("click", (event) => {
  if (event.target.tagName === "BUTTON") send(event.target.textContent);
});
showLoad();
setInterval(showLoad, 2000);

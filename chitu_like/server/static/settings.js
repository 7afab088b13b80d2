// What the reader has set: kept in this browser, the key only as long as the tab lives.

const byId = (id) => document.getElementById(id);
const KEPT = ["system", "temperature", "top-p", "top-k", "max-tokens", "seed"];

function number(id) {
  const value = byId(id).value.trim();
  return value === "" ? undefined : Number(value);
}

/** Fields of the request; what was left alone is left out, so that the model's defaults hold. */
export function samplingFields() {
  const fields = { top_k: number("top-k"), max_tokens: number("max-tokens"), seed: number("seed") };
  for (const [id, name] of [["temperature", "temperature"], ["top-p", "top_p"]]) {
    if (byId(id).dataset.touched) fields[name] = number(id);
  }
  return fields;
}

export const systemPrompt = () => byId("system").value.trim();
export const apiKey = () => byId("key").value.trim();

function show(id) {
  const slider = byId(id);
  byId(`${id}-value`).textContent = slider.dataset.touched ? Number(slider.value).toFixed(2) : "model default";
}

function load() {
  for (const id of KEPT) {
    const field = byId(id);
    const kept = localStorage.getItem(`chitu_like.${id}`);
    field.value = kept ?? field.dataset.default ?? "";
    if (field.type === "range") {
      field.dataset.touched = kept === null ? "" : "yes";
      show(id);
    }
  }
  byId("key").value = sessionStorage.getItem("chitu_like.key") ?? "";
}

/** Fill the fields and keep what changes. */
export function start() {
  load();
  for (const id of KEPT) {
    byId(id).addEventListener("input", (event) => {
      localStorage.setItem(`chitu_like.${id}`, event.target.value);
      if (event.target.type === "range") {
        event.target.dataset.touched = "yes";
        show(id);
      }
    });
  }
  byId("key").addEventListener("input", (event) => sessionStorage.setItem("chitu_like.key", event.target.value));
  byId("defaults").addEventListener("click", () => {
    for (const id of KEPT) localStorage.removeItem(`chitu_like.${id}`);
    load();
  });
  const panel = byId("settings");
  const toggle = byId("toggle-settings");
  toggle.addEventListener("click", () => {
    toggle.setAttribute("aria-expanded", String(panel.classList.toggle("open")));
  });
}

// The API's documentation from /openapi.json, with a way to try each route.

const document_ = await (await fetch("/openapi.json")).json();
const schemas = document_.components.schemas;

const EXAMPLES = {
  "/v1/chat/completions": { messages: [{ role: "user", content: "Hello!" }], max_tokens: 64 },
  "/v1/completions": { prompt: "Once upon a time", max_tokens: 16 },
  "/tokenize": { prompt: "Hello!" },
  "/detokenize": { tokens: [72, 105] },
};

function element(name, className, ...children) {
  const node = document.createElement(name);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

function resolve(schema) {
  return schema?.$ref ? schemas[schema.$ref.split("/").pop()] : schema;
}

/** A type in a few words. */
function words(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(words).join(" or ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" or ");
  if (schema.type === "array") return `list of ${schema.items ? words(schema.items) : "anything"}`;
  if (schema.type === "object" && typeof schema.additionalProperties === "object") {
    return `table of ${words(schema.additionalProperties)}`;
  }
  return schema.type ?? schema.description ?? "anything";
}

function table(schema) {
  const required = new Set(schema.required ?? []);
  const rows = Object.entries(schema.properties ?? {}).map(([name, field]) => {
    const cell = element("td", required.has(name) ? "required" : "", name);
    return element("tr", "", cell, element("td", "", words(field)));
  });
  return element("table", "schema", element("tbody", "", ...rows));
}

function jsonSchema(holder) {
  return resolve(holder?.content?.["application/json"]?.schema);
}

function tryOut(method, path) {
  const box = element("textarea");
  box.value = JSON.stringify(EXAMPLES[path] ?? {}, null, 2);
  const output = element("pre");
  output.hidden = true;
  const button = element("button", "run", "Send");
  button.type = "button";
  button.addEventListener("click", async () => {
    const key = sessionStorage.getItem("chitu_like.key");
    const headers = { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
    output.hidden = false;
    output.textContent = "…";
    try {
      const response = await fetch(path, { method, headers, body: method === "POST" ? box.value : undefined });
      const text = await response.text();
      const isJson = (response.headers.get("content-type") ?? "").startsWith("application/json");
      output.textContent = `${response.status}\n${isJson ? JSON.stringify(JSON.parse(text), null, 2) : text}`;
    } catch {
      output.textContent = "the service cannot be reached";
    }
  });
  return [...(method === "POST" ? [box] : []), button, output];
}

function operation(path, method, described) {
  const inside = element("div", "inside");
  const takes = jsonSchema(described.requestBody);
  const gives = jsonSchema(described.responses["200"]);
  if (takes) inside.append(element("h3", "", "Takes"), table(takes));
  if (gives) inside.append(element("h3", "", "Gives"), table(gives));
  if (!path.includes("{") && !path.startsWith("/admin")) {
    inside.append(element("h3", "", "Try it"), ...tryOut(method.toUpperCase(), path));
  }
  const summary = element(
    "summary", "",
    element("span", `method ${method}`, method.toUpperCase()),
    element("span", "path", path),
    element("span", "summary", described.summary),
  );
  return element("details", "operation", summary, inside);
}

document.getElementById("version").textContent = `version ${document_.info.version}`;
document.getElementById("base").textContent = `${location.origin}/v1`;
document.getElementById("operations").append(
  ...Object.entries(document_.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, described]) => operation(path, method, described))),
);

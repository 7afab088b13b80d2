// The service as this page sees it: server-sent events of a chat, and small GETs.

/** A refusal of the service, in its own words. */
export class ServiceError extends Error {}

function headersFor(key) {
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  return headers;
}

/** What to throw for a response that is no answer. */
function refusal(status, body) {
  if (status === 401) return new ServiceError("this service asks for an API key: put it under Settings");
  return new ServiceError(body.error?.message ?? `the service answered with ${status}`);
}

/** Fetch JSON, or throw what the service says is wrong. */
export async function getJson(path, key) {
  const response = await fetch(path, { headers: headersFor(key) });
  const body = await response.json();
  if (!response.ok) throw refusal(response.status, body);
  return body;
}

/** Yield the chunks of a chat answer as they arrive. */
export async function* streamChat(request, key, signal) {
  const response = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: headersFor(key),
    body: JSON.stringify({
      ...request,
      stream: true,
      stream_options: { include_usage: true, continuous_usage_stats: true },
    }),
    signal,
  });
  if (!response.ok) {
    throw refusal(response.status, await response.json().catch(() => ({})));
  }
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServiceError(chunk.error.message);
    yield chunk;
  }
  throw new ServiceError("the connection ended before the answer did");
}

/** Yield the data of each event; comments, which only keep the connection alive, are skipped. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    pending += value;
    const parts = pending.split("\n\n");
    pending = parts.pop();
    for (const part of parts) {
      const lines = part.split("\n").filter((line) => line.startsWith("data: "));
      if (lines.length) yield lines.map((line) => line.slice(6)).join("\n");
    }
  }
}

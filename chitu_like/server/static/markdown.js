// A little Markdown, built from DOM nodes: what the model writes is text and never becomes markup.

const INLINE = /`([^`\n]+)`|\*\*([^*\n]+)\*\*|(?<![*\w])\*([^*\s][^*\n]*)\*(?![*\w])/g;

/** Replace the children of `target` by `text`, rendered. */
export function render(target, text) {
  target.replaceChildren(...blocks(text.split("\n")));
}

function element(name, ...children) {
  const node = document.createElement(name);
  node.append(...children);
  return node;
}

function inline(text) {
  const nodes = [];
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    if (match.index > end) nodes.push(text.slice(end, match.index));
    const [whole, code, strong, emphasis] = match;
    if (code !== undefined) nodes.push(element("code", code));
    else if (strong !== undefined) nodes.push(element("strong", strong));
    else nodes.push(element("em", emphasis));
    end = match.index + whole.length;
  }
  nodes.push(text.slice(end));
  return nodes;
}

function blocks(lines) {
  const found = [];
  let at = 0;
  const take = (matches) => {
    const taken = [];
    while (at < lines.length && matches(lines[at])) taken.push(lines[at++]);
    return taken;
  };
  while (at < lines.length) {
    const line = lines[at];
    if (/^\s*```/.test(line)) {
      at++;
      const code = take((next) => !/^\s*```\s*$/.test(next));
      at++;
      found.push(element("pre", element("code", code.join("\n"))));
    } else if (/^#{1,4}\s/.test(line)) {
      at++;
      const depth = line.match(/^#+/)[0].length;
      found.push(element(`h${Math.min(depth + 2, 5)}`, ...inline(line.replace(/^#+\s+/, ""))));
    } else if (/^\s*[-*+]\s+/.test(line)) {
      found.push(list("ul", take((next) => /^\s*[-*+]\s+/.test(next)), /^\s*[-*+]\s+/));
    } else if (/^\s*\d{1,9}[.)]\s+/.test(line)) {
      found.push(list("ol", take((next) => /^\s*\d{1,9}[.)]\s+/.test(next)), /^\s*\d+[.)]\s+/));
    } else if (/^>\s?/.test(line)) {
      const quoted = take((next) => /^>\s?/.test(next)).map((next) => next.replace(/^>\s?/, ""));
      found.push(element("blockquote", ...inline(quoted.join("\n"))));
    } else if (!line.trim()) {
      at++;
    } else {
      const text = take((next) => next.trim() && !/^(\s*```|#{1,4}\s|\s*[-*+]\s|\s*\d{1,9}[.)]\s|>)/.test(next));
      found.push(element("p", ...inline((text.length ? text : [lines[at++]]).join("\n"))));
    }
  }
  return found;
}

function list(name, lines, mark) {
  const node = element(name, ...lines.map((line) => element("li", ...inline(line.replace(mark, "")))));
  if (name === "ol") node.start = parseInt(lines[0], 10);
  return node;
}

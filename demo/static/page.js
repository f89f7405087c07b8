// @ts-check
// What the demo's pages have in common.

/** @type {(id: string) => any} */
export const $ = (id) => document.getElementById(id);
/** @param {number} number */
export const seconds = (number) => `${number.toFixed(1)}\u00a0s`;

/**
 * Put a line on top of the page's log.
 * @param {string} kind @param {string} text @param {number} [code]
 */
export function record(kind, text, code) {
  const item = document.createElement("li");
  item.dataset.kind = kind;
  if (code !== undefined) item.dataset.code = String(code);
  const time = document.createElement("time");
  time.textContent = new Date().toLocaleTimeString([], { hourCycle: "h23" });
  const tag = document.createElement("b");
  tag.textContent = String(code ?? kind);
  const words = document.createElement("span");
  words.textContent = text;
  item.append(time, tag, words);
  $("log").prepend(item);
  if ($("log").children.length > 200) $("log").lastChild.remove();
}

/**
 * Press a button of the server's; tell whether that went well.
 * @param {string} path @param {FormData} [body]
 */
export async function post(path, body) {
  try {
    const response = await fetch(path, { method: "POST", body });
    record("post", response.ok ? path : `${path}: ${response.status} ${response.statusText}`);
    return response.ok;
  } catch {
    record("post", `${path}: the server doesn't answer`);
    return false;
  }
}

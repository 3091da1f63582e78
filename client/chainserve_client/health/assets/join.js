// How to join, as commands to copy. The token is a placeholder: it is a secret, and the page does not know it.

import { byId, h } from "./dom.js";

let shown = null;

export function showJoin(model) {
  if (shown === model.name) return; // or a copied mark would go
  shown = model.name;
  const commands = [
    ["Bring a GPU", `chainserve-server --model ${quoted(model.name)} --host ADDRESS --port 8300 --join TOKEN`],
    ["Ask from a terminal", "chainserve chat TOKEN"],
    ["Have this page at home", "chainserve health TOKEN"],
  ];
  byId("join").replaceChildren(...commands.map(([title, command]) => {
    const code = h("code", {}, command);
    const button = h("button", { type: "button", class: "quiet", "aria-label": `Copy: ${title}` }, "Copy");
    button.addEventListener("click", () => copy(command, code, button));
    return h("div", { class: "command" }, h("h3", {}, title), h("pre", { tabindex: "0" }, code), button);
  }));
}

// A name comes from a server: in a shell it must stay one word that does nothing.
const quoted = (name) => (/^[\w./:@-]+$/.test(name) && !name.startsWith("-") ? name : "MODEL");

async function copy(command, code, button) {
  try {
    await navigator.clipboard.writeText(command);
    button.textContent = "Copied";
  } catch {
    const range = document.createRange(); // without TLS, or if it is not allowed
    range.selectNodeContents(code);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    button.textContent = "Selected";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
}

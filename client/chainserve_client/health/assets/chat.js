// A conversation with the swarm, by the gateway's own API; every answer shows the way it took.

import { way } from "./chains.js";
import { byId, h } from "./dom.js";
import { eventsOf, headers } from "./stream.js";
import { figure, nameOf, seconds } from "./words.js";

export function startChat(modelNow) {
  const log = byId("chat-log");
  const text = byId("chat-text");
  const send = byId("chat-send");
  const empty = [...log.children];
  let messages = [];
  let running = null;
  let isLive = false;

  function controls() {
    send.textContent = running ? "Stop" : "Send";
    send.disabled = !running && (!isLive || !modelNow());
  }

  function add(role, ...children) {
    const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    const said = h("div", { class: "said", "data-role": role }, h("span", { class: "who" }, role === "user" ? "You" : "Swarm"), ...children);
    if (!messages.length && log.querySelector(".empty")) log.replaceChildren();
    log.append(said);
    if (follows) log.scrollTop = log.scrollHeight;
    return said;
  }

  async function ask(question) {
    add("user", h("p", {}, question));
    messages = [...messages, { role: "user", content: question }];
    const body = h("p", { class: "answer" });
    const box = add("assistant", body);
    running = new AbortController();
    log.setAttribute("aria-busy", "true"); // or a reader would speak each token
    controls();
    try {
      const report = await answer(body);
      messages = [...messages, { role: "assistant", content: body.textContent }];
      if (report) box.append(route(report));
    } catch (error) {
      const stopped = error.name === "AbortError";
      if (!stopped && !(error instanceof TypeError) && !(error instanceof ApiError)) throw error;
      if (body.textContent) messages = [...messages, { role: "assistant", content: body.textContent }];
      else messages = messages.slice(0, -1);
      const words = stopped ? "Stopped." : error instanceof ApiError ? error.message : "The gateway does not answer.";
      box.append(h("p", { class: stopped ? "meta" : "meta warns" }, words));
    } finally {
      running = null;
      log.setAttribute("aria-busy", "false");
      log.scrollTop = log.scrollHeight;
      controls();
    }
  }

  async function answer(body) {
    const response = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: headers({ "Content-Type": "application/json" }),
      body: JSON.stringify({ model: modelNow().name, messages, stream: true, chainserve: true }),
      signal: running.signal,
    });
    if (!response.ok) throw new ApiError(await reason(response));
    let report = null;
    for await (const { data } of eventsOf(response)) {
      if (data === "[DONE]") break;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(chunk.error.message);
      for (const choice of chunk.choices) {
        const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
        if (choice.delta.content) body.append(choice.delta.content);
        if (choice.chainserve) report = choice.chainserve;
        if (follows) log.scrollTop = log.scrollHeight;
      }
    }
    body.normalize();
    return report;
  }

  function route(report) {
    const servers = modelNow()?.servers ?? [];
    const named = (peer) => nameOf(servers.find((server) => server.peer === peer), peer);
    const facts = [`${figure(report.tokens_per_s)} tokens/s`, `first token after ${seconds(report.first_token_s)}`];
    if (report.queue_s > 0.5) facts.push(`of that ${seconds(report.queue_s)} waiting`);
    return h("div", { class: "meta" },
      h("span", { class: "way" }, way(report.route, named)), h("span", {}, facts.join(", ")),
      report.recoveries.map((lost) => h("span", { class: "warns" }, `lost ${named(lost.peer)}, went on after ${seconds(lost.stall_s)}`)));
  }

  byId("chat-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (running) return running.abort();
    const question = text.value.trim();
    if (!question || send.disabled) return;
    text.value = "";
    ask(question);
  });
  text.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!running) byId("chat-form").requestSubmit();
  });
  byId("chat-new").addEventListener("click", () => {
    running?.abort();
    messages = [];
    log.replaceChildren(...empty);
    text.focus();
  });
  controls();
  return {
    update(live) {
      isLive = live;
      controls();
    },
  };
}

class ApiError extends Error {}

async function reason(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The gateway answered ${response.status}.`;
  }
}

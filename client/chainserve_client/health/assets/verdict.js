// Is the swarm healthy, where is it weakest, and the few figures that matter most.

import { byId, h, show } from "./dom.js";
import { blocks, count, figure, nameOf, percent, plural, seconds } from "./words.js";

const SIGNS = { healthy: "✓", at_risk: "!", loading: "…", broken: "✕", unknown: "?" };
const TITLES = {
  healthy: "Healthy",
  at_risk: "Working, with nothing to spare",
  loading: "Getting ready",
  broken: "Blocks are missing",
  unknown: "Out of touch",
};

export function showVerdict(model, { state, isLive }) {
  const health = !isLive || !model ? "unknown" : model.verdict.health;
  const title = isLive ? (model ? TITLES[health] : "Nobody is here") : "Not connected";
  const box = byId("verdict");
  box.dataset.health = health;
  document.title = `${SIGNS[health]} ${title} · ${state.swarm}`;
  show(
    byId("verdict-words"),
    h("p", { class: "sign", "aria-hidden": "true" }, SIGNS[health]),
    h("div", {}, h("h2", { id: "verdict-title" }, title), sentences(model, health, isLive).map((text) => h("p", {}, text))),
  );
  show(byId("figures"), model ? figures(model) : []);
}

function sentences(model, health, isLive) {
  if (!isLive) return ["What follows is what the gateway said last."];
  if (!model) return ["No server is in the swarm now."];
  const { verdict, num_blocks: numBlocks } = model;
  const named = (peers) => peers.map((peer) => nameOf(model.servers.find((server) => server.peer === peer), peer));
  if (health === "unknown") return ["No server has been heard of for a while, so what follows may be old."];
  if (verdict.missing_blocks.length) {
    const missing = `${capital(blocks(verdict.missing_blocks))} of ${numBlocks} are not online: no request can be answered`;
    return [health === "loading" ? `${missing} yet. Servers are loading them.` : `${missing} until a server takes them.`];
  }
  const first = `Every block of ${model.name} is online.`;
  const weakest = verdict.weakest_blocks;
  const all = weakest.length === 1 && weakest[0][1] - weakest[0][0] === numBlocks;
  const where = all ? "every block" : listed(weakest);
  if (verdict.num_to_break > 1) {
    return [first, `The weakest, ${where}, ${all ? "is" : "are"} held by ${plural(verdict.num_to_break, "server")}: any ${plural(verdict.num_to_break - 1, "server")} may go.`];
  }
  const holders = named(verdict.weakest_servers);
  const who = holders.length === 1 ? `it is ${holders[0]}` : holders.length > 4 ? `there are ${holders.length} such servers` : holders.join(", ");
  return [first, `One server stands between working and broken: ${where} on one server only (${who}).`];
}

const listed = (weakest) => (weakest.length > 4 ? `${blocks(weakest.slice(0, 4))} and others` : blocks(weakest));
const capital = (text) => text[0].toUpperCase() + text.slice(1);

function figures(model) {
  const { totals, queue } = model;
  const wait = queue.wait_s === null ? "wait not known" : queue.wait_s ? `about ${seconds(queue.wait_s)} to wait` : "a place is free";
  return [
    item("Servers", `${count(totals.num_online)}`, totals.num_online === totals.num_servers ? "all online" : `of ${count(totals.num_servers)} online`),
    item("Tokens/s", figure(totals.tokens_per_s), plural(totals.num_sessions, "session")),
    item("Cache in use", percent(totals.load), `${figure(60 * totals.requests_per_s)} requests/min`),
    item("Waiting", count(queue.num_waiting), wait),
  ];
}

function item(label, value, more) {
  return h("div", {}, h("dt", {}, label), h("dd", { class: "value" }, value), h("dd", { class: "more" }, more));
}

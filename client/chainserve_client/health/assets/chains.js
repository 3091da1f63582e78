// The plan that is followed, its chains, and what requests may expect of them now.

import { byId, h, show } from "./dom.js";
import { bytes, count, figure, nameOf, NONE, percent, plural, seconds, short, span } from "./words.js";

const HEADS = ["Chain", "Way", "Sessions", "Waiting", "First token", "Tokens/s", "Request, predicted", "Held, observed"];
const MAX_SHOWN = 12;

export function showChains(model, { canPlan }) {
  const { plan } = model;
  const named = (peer) => nameOf(model.servers.find((server) => server.peer === peer), peer);
  const isDown = (hop) => !model.servers.some((server) => server.peer === hop.peer && server.state === "online" && server.blocks[0] <= hop.blocks[0] && hop.blocks[1] <= server.blocks[1]);
  if (!plan) {
    byId("chains-aside").textContent = "";
    show(byId("chains"), h("p", { class: "empty" }, "There is no plan yet. The servers make one when enough of them are here."));
    return;
  }
  byId("chains-aside").textContent = `plan ${plan.epoch} by ${named(plan.planner)}, followed by ${plan.num_followers} of ${plural(model.servers.length, "server")}`;
  if (!("chains" in plan)) {
    show(byId("chains"), h("p", { class: "empty" }, plan.cannot_be_read ? `It cannot be read: ${plan.cannot_be_read}` : "It is being read."));
    return;
  }
  show(byId("chains"),
    plan.shortage && h("p", { class: "hint-bad" }, `There is no room for ${plural(plan.shortage.missing_blocks.length, "block")}: ${bytes(plan.shortage.missing_bytes)} more memory is needed. The swarm waits for it.`),
    plan.chains.length ? chainTable(plan, named, isDown) : !plan.shortage && h("p", { class: "empty" }, "It has no chains."),
    plan.num_chains > MAX_SHOWN && h("p", { class: "hint" }, `and ${plural(plan.num_chains - MAX_SHOWN, "slower chain")}`),
    h("dl", { class: "facts" }, facts(plan, { canPlan, named })));
}

function chainTable(plan, named, isDown) {
  return h("table", { class: "rows rows-chains", role: "table" },
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, HEADS.map((head) => h("th", { role: "columnheader", scope: "col" }, head)))),
    h("tbody", { role: "rowgroup" }, plan.chains.slice(0, MAX_SHOWN).map((chain, index) => row(chain, index, named, isDown))));
}

function row(chain, index, named, isDown) {
  const cell = (head, ...children) => h("td", { role: "cell", "data-head": head }, ...children);
  return h("tr", { role: "row" },
    h("th", { role: "rowheader", scope: "row" }, h("span", { class: "phone-only" }, "Chain "), String(index + 1), !chain.is_whole && h("span", { class: "under warns" }, "not whole now")),
    cell("Way", h("span", { class: "way" }, way(chain.hops, named, isDown))),
    cell("Sessions", chain.num_held === null ? `room for ${count(chain.places)}` : `${count(chain.num_held)} of about ${count(chain.places)}`,
      chain.used_share !== null && h("span", { class: "under" }, `${percent(chain.used_share)} of the room`)),
    cell("Waiting", count(chain.num_waiting), chain.num_waiting ? h("span", { class: "under" }, `about ${seconds(chain.wait_s)}`) : null),
    cell("First token", seconds(chain.predicted.first_token_s)),
    cell("Tokens/s", figure(chain.predicted.tokens_per_s)),
    cell("Request, predicted", seconds(chain.predicted.request_s)),
    cell("Held, observed", chain.observed_s === null ? NONE : seconds(chain.observed_s)));
}

export function way(hops, named, isDown = () => false) {
  return hops.map((hop, index) => [
    index > 0 && h("span", { class: "arrow" }, h("span", { class: "unseen" }, " then "), h("span", { "aria-hidden": "true" }, "→")),
    h("span", { class: isDown(hop) ? "hop down" : "hop" }, h("bdi", { title: hop.peer }, named ? named(hop.peer) : short(hop.peer)), " ", h("span", { class: "num" }, span(hop.blocks)), isDown(hop) && h("span", { class: "unseen" }, " does not serve them now")),
  ]);
}

function facts(plan, { canPlan, named }) {
  const { now } = plan;
  const per = (rate) => (rate >= 1 ? `${figure(rate)} per second` : `${figure(60 * rate)} per minute`);
  const between = (bounds) => (bounds.upper === null ? "without end: more comes than the chains bear" : bounds.lower === bounds.upper ? seconds(bounds.lower) : `${seconds(bounds.lower)} to ${seconds(bounds.upper)}`);
  const list = [
    ["Planned for", `${per(plan.for.requests_per_s)}, ${count(plan.for.input_tokens)} tokens in and ${count(plan.for.output_tokens)} out${plan.for.is_assumed ? " (assumed: few requests have come yet)" : ""}`],
  ];
  if (plan.chains.length) {
    list.push(["At most", per(plan.max_requests_per_s)]);
    list.push(["Coming now", now.requests_per_s ? `${per(now.requests_per_s)}, ${percent(now.load)} of that` : "nothing in the last minutes"]);
    list.push(["Response time now", now.response_s ? `${between(now.response_s)} on average` : canPlan ? NONE : "not worked out: planning is not installed here"]);
    list.push(["At the planned rate", plan.is_stable ? `${between(plan.response_s)} on average` : "the queue would grow without end"]);
  }
  if (plan.moves.length) list.push(["Moves that follow", plan.moves.map((move) => `${named(move.peer)} ${span(move.from)} → ${span(move.to)}`).join(", ")]);
  for (const [peer, reason] of Object.entries(plan.left_out)) list.push(["Left out", `${named(peer)}: ${reason}`]);
  return list.map(([term, words]) => h("div", {}, h("dt", {}, term), h("dd", {}, words)));
}

// What happened lately, newest first.

import { byId, h, show } from "./dom.js";
import { age, blocks, short, span, time } from "./words.js";

const SIGNS = { joined: "+", restarted: "↻", online: "●", moved: "⇄", left: "−", lost: "✕", recovered: "✓", epoch: "§", broken: "✕", whole: "✓" };
const SHOWN = 60;

export function showEvents(events, { now, models }) {
  const many = models.length > 1;
  if (!events.length) {
    show(byId("events"), h("p", { class: "empty" }, "Nothing since this gateway was started."));
    return;
  }
  show(byId("events"), h("ol", { class: "events" }, events.slice(0, SHOWN).map((event) =>
    h("li", { "data-kind": event.kind },
      h("span", { class: "event-sign", "aria-hidden": "true" }, SIGNS[event.kind] ?? "·"),
      h("span", { class: "event-words" }, words(event), many && ` (${event.model})`),
      h("time", { datetime: new Date(1000 * event.at).toISOString(), title: time(event.at) }, `${age(now - event.at)} ago`)))));
}

function words(event) {
  const who = event.peer && h("bdi", {}, event.name ? `${event.name} ${short(event.peer)}` : short(event.peer));
  const to = span(event.to_blocks);
  switch (event.kind) {
    case "joined": return [who, " joined", event.to_blocks && `, blocks ${to}`];
    case "restarted": return [who, " was started again"];
    case "online": return [who, ` is online with blocks ${to}`];
    case "moved": return [who, event.from_blocks ? ` moves from blocks ${span(event.from_blocks)} to ${to}` : ` is given blocks ${to}`];
    case "left": return [who, " left", event.from_blocks && `, it held blocks ${span(event.from_blocks)}`];
    case "lost": return [who, " does not answer any more", event.from_blocks && `, it held blocks ${span(event.from_blocks)}`];
    case "recovered": return [who, " answers again"];
    case "epoch": return [`plan ${event.epoch} by `, who];
    case "broken": return `${blocks(event.missing_blocks)} of ${event.model} are missing`;
    case "whole": return `every block of ${event.model} is online again`;
    default: return event.kind;
  }
}

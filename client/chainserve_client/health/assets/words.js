// Numbers as people read them, and servers by name.

const number = (digits) => new Intl.NumberFormat("en", { maximumSignificantDigits: digits });
const three = number(3);
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
export const NONE = "–";

export const count = (value) => (value === null || value === undefined ? NONE : whole.format(value));
export const figure = (value) => (value === null || value === undefined ? NONE : three.format(value));
export const percent = (share) => (share === null || share === undefined ? NONE : `${Math.round(100 * share)} %`);
export const plural = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;

export function seconds(value) {
  if (value === null || value === undefined) return NONE;
  if (value === 0) return "0 s";
  if (value < 0.0995) return `${number(2).format(1000 * value)} ms`;
  if (value < 0.9995) return `${number(3).format(1000 * value)} ms`;
  return value < 600 ? `${three.format(value)} s` : age(value);
}

export function bytes(value) {
  if (value === null || value === undefined) return NONE;
  if (value === 0) return "0";
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (value < 999.5) return `${three.format(value)} ${unit}`;
    value /= 1000;
  }
  return `${three.format(value)} TB`;
}

export function age(value) {
  const parts = [[Math.floor(value / 86400), "d"], [Math.floor(value / 3600) % 24, "h"], [Math.floor(value / 60) % 60, "min"]];
  const first = parts.findIndex(([amount]) => amount > 0);
  if (first < 0) return `${Math.max(0, Math.floor(value))} s`;
  return parts.slice(first, first + 2).filter(([amount]) => amount > 0).map(([amount, unit]) => `${amount} ${unit}`).join(" ");
}

export const span = (blocks) => (blocks ? `${blocks[0]}:${blocks[1]}` : "none");
export const spans = (list) => list.map(span).join(", ");
export const blocks = (list) => {
  const single = list.length === 1 && list[0][1] - list[0][0] === 1;
  return single ? `block ${list[0][0]}` : `blocks ${spans(list)}`;
};
export const short = (peer) => peer.slice(-6);
export const nameOf = (server, peer) => (server?.name ? `${server.name} ${short(peer)}` : short(peer));
export const time = (unix) => new Date(1000 * unix).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });

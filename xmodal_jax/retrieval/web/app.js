// Asks the server and shows what it found. All text of others is set as text, never as markup.

import { cards, colour, make } from "./results.js";

const FIRST = 24;
const MOST = 100;
const LONG = 90; // characters, that are set smaller
const LETTER = /[\p{L}\p{N}]/u;
const $ = (id) => document.getElementById(id);

let shown = []; // cards
let words = []; // their nodes in the sentence
let pinned = null; // number of a word that stays lit
let pointed = null; // of the one under the pointer or the focus
let running = null;

function light() {
  const word = pointed ?? pinned;
  for (const card of shown) card.light(word);
  words.forEach((node, at) => {
    node.classList.toggle("lit", at === word);
    node.setAttribute("aria-pressed", String(at === pinned));
  });
}

function point(word) {
  if (word === pointed) return;
  pointed = word;
  light();
}

function pin(word) {
  pinned = pinned === word ? null : word;
  pointed = null;
  light();
}

// Marks the words that a region answers.
function name(numbers) {
  words.forEach((node, at) => node.classList.toggle("told", Boolean(numbers?.includes(at))));
}

function wordNode(text, at) {
  const node = make("button", `word ${colour(at)}`, text);
  node.type = "button";
  node.addEventListener("pointerenter", (event) => {
    if (event.pointerType !== "touch") point(at);
  });
  node.addEventListener("pointerleave", () => point(null));
  node.addEventListener("focus", () => {
    if (node.matches(":focus-visible")) point(at);
  });
  node.addEventListener("blur", () => point(null));
  node.addEventListener("click", () => pin(at));
  return node;
}

// What comes behind the last word.
function restOf(text, places) {
  return Array.from(text).slice(places.at(-1)?.[1] ?? 0).join("");
}

// The sentence with its words as buttons; what lies between them, and what the model did not read,
// stays text. Places count characters, not JavaScript's units of them.
function showSentence(text, places) {
  const characters = Array.from(text);
  const parts = [];
  let end = 0;
  words = places.map(([from, to], at) => {
    parts.push(characters.slice(end, from).join(""));
    end = to;
    const node = wordNode(characters.slice(from, to).join(""), at);
    parts.push(node);
    return node;
  });
  const rest = restOf(text, places);
  parts.push(places.length ? make("span", "unread", rest) : rest);
  $("sentence").classList.toggle("long", characters.length > LONG);
  $("sentence").replaceChildren(...parts);
  $("asked").hidden = false;
}

function showLike(item) {
  const line = make("span", "like");
  if (item.picture) {
    const image = make("img");
    image.alt = "";
    image.src = `image/${encodeURIComponent(item.id)}`;
    line.append(image);
  }
  const text = make("span", "", "Like ");
  text.append(make("em", "", item.file || item.id));
  line.append(text);
  $("sentence").replaceChildren(line);
  $("asked").hidden = false;
}

function howLong(answer) {
  const parts = Object.entries(answer.milliseconds);
  const total = parts.reduce((sum, [, value]) => sum + value, 0);
  const each = parts.map(([what, value]) => `${what} ${value.toFixed(0)}`).join(", ");
  return [` in ${total.toFixed(0)} ms`, make("span", "detail", ` (${each})`)];
}

function hintOf(answer) {
  if (!answer.text || !answer.hits.length) return "";
  if (answer.kind === "vector") {
    return "This model has one vector for an image, so that no region answers a word.";
  }
  const cut = `The model reads no more than ${answer.words.length} of these words. `;
  const how = "Choose a word to see what answers it, or an image to find its like.";
  return LETTER.test(restOf(answer.text, answer.words)) ? cut + how : how;
}

function show(answer) {
  const characters = Array.from(answer.text ?? "");
  const texts = (answer.words ?? []).map(([from, to]) => characters.slice(from, to).join(""));
  const hits = answer.hits.filter((hit) => hit.id !== answer.like?.id);
  pinned = pointed = null;
  clearSentence();
  if (answer.text) showSentence(answer.text, answer.words);
  if (answer.like) showLike(answer.like);
  shown = cards(hits, texts, { point, pin, name, open: (id) => go({ like: id }) });
  $("results").replaceChildren(...shown.map((card) => card.node));
  const items = answer.items.toLocaleString("en");
  if (answer.stage) {
    const how = answer.stage === "exact" ? "exact: each was scored" : "candidates of a first stage";
    $("status").replaceChildren(`${hits.length} of ${items} images`, ...howLong(answer), `, ${how}`);
  } else {
    $("status").textContent = `${items} images. Describe one, or begin with one of these.`;
  }
  $("hint").textContent = hintOf(answer);
  $("more").hidden = !answer.stage || hits.length < FIRST || answer.k >= Math.min(MOST, answer.items);
}

function clearSentence() {
  words = [];
  $("sentence").replaceChildren();
  $("asked").hidden = true;
}

function fail(message) {
  shown = [];
  clearSentence();
  $("results").replaceChildren();
  $("status").textContent = $("hint").textContent = "";
  $("more").hidden = true;
  $("error").textContent = message;
}

async function load(ask, k) {
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  // An image that is asked about is found, too, and left out.
  const query = new URLSearchParams({ ...ask, k: ask.id ? Math.min(k + 1, MOST) : k });
  const path = ask.q ? "search" : ask.id ? "similar" : "browse";
  $("results").setAttribute("aria-busy", "true");
  $("error").textContent = "";
  try {
    const response = await fetch(`api/${path}?${query}`, { signal });
    const answer = await response.json();
    if (response.ok) show({ ...answer, k });
    else fail(answer.error);
  } catch (problem) {
    if (problem.name !== "AbortError") fail("The server does not answer; is it still running?");
  } finally {
    if (!signal.aborted) $("results").removeAttribute("aria-busy");
  }
}

// What the address of the page asks for.
function asked() {
  const address = new URLSearchParams(location.search);
  const [q, id] = [address.get("q")?.trim(), address.get("like")];
  return q ? { q } : id ? { id } : {};
}

function read(k = FIRST) {
  const ask = asked();
  $("q").value = ask.q ?? "";
  document.title = ask.q ? `${ask.q} · search` : "Search images by sentence";
  return load(ask, k);
}

function go(where) {
  history.pushState(null, "", `?${new URLSearchParams(where)}`);
  scrollTo(0, 0);
  read();
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const q = $("q").value.trim();
  if (q) go({ q });
});
$("home").addEventListener("click", (event) => {
  event.preventDefault();
  history.pushState(null, "", location.pathname);
  read();
});
$("more").addEventListener("click", () => read(Math.min(2 * shown.length + 1, MOST)));
addEventListener("popstate", () => read());
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && pinned !== null) pin(pinned);
  if (event.key === "/" && document.activeElement === document.body) {
    event.preventDefault();
    $("q").focus();
  }
});
read();

// The images that were found, as cards: a picture, its regions, and a bar for each word.

export const COLOURS = 8; // of style.css

export function make(tag, name, text) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
}

export const colour = (word) => `c${word % COLOURS}`;
const percent = (share) => `${(100 * share).toFixed(2)}%`;
const number = (value) => value.toFixed(2);

// Bars are drawn from the least to the greatest similarity on the page: cosines of a sentence
// differ by little, and it is the difference between images that tells.
function scaleOf(hits) {
  const all = hits.flatMap((hit) => hit.matches.map((match) => match[1]));
  const low = Math.min(...all);
  const span = Math.max(...all) - low || 1;
  return (value) => 0.08 + (0.92 * (value - low)) / span;
}

function picture(hit, eager) {
  const figure = make("div", "picture");
  const [width, height] = hit.size;
  const setRatio = (value) => figure.parentNode?.parentNode?.style.setProperty("--ratio", value);
  figure.ratio = width && height ? width / height : 4 / 3;
  if (!hit.picture) {
    figure.classList.add("blank");
    return figure;
  }
  const image = make("img");
  image.alt = "";
  image.decoding = "async";
  image.loading = eager ? "eager" : "lazy";
  image.draggable = false;
  image.addEventListener("error", () => {
    image.remove();
    figure.classList.add("blank");
  });
  image.addEventListener("load", () => setRatio(image.naturalWidth / image.naturalHeight));
  image.src = `image/${encodeURIComponent(hit.id)}`;
  figure.append(image);
  return figure;
}

// A region that answers some words: [word, similarity] of each, best first.
function region(box, answers) {
  const [x1, y1, x2, y2] = box;
  const node = make("div", "region");
  node.style.left = percent(x1);
  node.style.top = percent(y1);
  node.style.width = percent(x2 - x1);
  node.style.height = percent(y2 - y1);
  if (answers.length) node.classList.add(colour(answers[0][0]));
  // The tag stands where there is room.
  const row = y1 > 0.16 ? "above" : y2 < 0.84 ? "below" : "inside";
  node.append(make("span", `tag ${row} ${x1 + x2 > 1 ? "right" : "left"}`));
  node.middle = (y1 + y2) / 2;
  node.area = (x2 - x1) * (y2 - y1);
  node.answers = answers;
  return node;
}

function regionsOf(hit) {
  const answers = new Map();
  hit.matches.forEach(([at, similarity], word) => {
    if (!answers.has(at)) answers.set(at, []);
    answers.get(at).push([word, similarity]);
  });
  const known = [...answers].filter(([at]) => hit.boxes[at]);
  const nodes = known.map(([at, own]) =>
    region(hit.boxes[at], own.sort((a, b) => b[1] - a[1])),
  );
  // Smaller ones lie above larger ones, so that each can be pointed at.
  return nodes.sort((a, b) => b.area - a.area);
}

function bars(hit, words, scale) {
  const strip = make("div", "bars");
  strip.setAttribute("aria-hidden", "true");
  hit.matches.forEach(([, similarity], word) => {
    const slot = make("span", `bar ${colour(word)}`);
    const level = make("i");
    level.style.height = percent(scale(similarity));
    slot.append(level);
    slot.word = word;
    strip.append(slot);
  });
  return strip;
}

// Ways of a card: point(word | null), pin(word), name(words | null), open(id).
export class Card {
  constructor(hit, rank, words, scale, ways) {
    this.hit = hit;
    this.words = words;
    this.node = make("li", "card");
    this.regions = regionsOf(hit);
    const name = hit.file || hit.id;
    const link = make("a", "open");
    link.href = `?like=${encodeURIComponent(hit.id)}`;
    link.setAttribute("aria-label", `${rank}. ${name}: search for images like it`);
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      ways.open(hit.id);
    });
    const figure = picture(hit, rank <= 8);
    this.node.style.setProperty("--ratio", figure.ratio);
    link.append(figure);
    link.addEventListener("focus", () => this.nameAll(link.matches(":focus-visible")));
    link.addEventListener("blur", () => this.nameAll(false));
    this.node.append(link);
    if (!hit.picture) {
      const rest = hit.boxes.filter((box, at) => !hit.matches.some((match) => match[0] === at));
      for (const box of rest) figure.append(this.outline(box));
    }
    for (const node of this.regions) {
      node.addEventListener("pointerenter", (event) => {
        if (event.pointerType !== "touch") this.tell(node, ways);
      });
      node.addEventListener("pointerleave", () => this.tell(null, ways));
      figure.append(node);
    }
    this.said = make("div", "said");
    figure.append(this.said);
    if (hit.matches.length) {
      const strip = bars(hit, words, scale);
      strip.addEventListener("pointerover", (event) => {
        if (event.pointerType !== "touch") ways.point(event.target.closest(".bar")?.word ?? null);
      });
      strip.addEventListener("pointerleave", () => ways.point(null));
      strip.addEventListener("click", (event) => {
        const bar = event.target.closest(".bar");
        if (bar) ways.pin(bar.word);
      });
      const list = words.map((word, at) => `${word} ${number(hit.matches[at][1])}`).join(", ");
      this.node.append(strip, make("p", "hidden", list));
    }
    const line = make("p", "meta");
    line.append(make("b", "", rank), make("span", "name", name));
    if (hit.score !== undefined) line.append(make("span", "score", hit.score.toFixed(3)));
    line.title = name;
    this.node.append(line);
  }

  outline(box) {
    const node = region(box, []);
    node.className = "region idle";
    return node;
  }

  // Lights up the region that answers a word, or none.
  light(word) {
    this.lit = word;
    this.node.classList.toggle("lighting", word !== null);
    for (const node of this.regions) {
      const answer = node.answers.find((own) => own[0] === word);
      node.className = `region ${colour(answer ? word : node.answers[0][0])}`;
      node.classList.toggle("lit", Boolean(answer));
      node.firstChild.textContent = answer ? `${this.words[word]} ${number(answer[1])}` : "";
    }
    this.node.querySelectorAll(".bar").forEach((bar) => {
      bar.classList.toggle("on", bar.word === word);
    });
  }

  // Without a pointer: all regions show their words while the image has the focus.
  nameAll(on) {
    this.light(this.lit ?? null);
    if (!on) return;
    for (const node of this.regions) {
      const names = node.answers.map(([word]) => this.words[word]);
      node.firstChild.textContent = [...new Set(names)].join(" ");
    }
  }

  // Shows the words that a region answers.
  tell(region, ways) {
    for (const node of this.regions) node.classList.toggle("told", node === region);
    this.node.classList.toggle("telling", Boolean(region));
    // Where the region is not.
    this.said.classList.toggle("top", Boolean(region) && region.middle > 0.5);
    this.said.replaceChildren(
      ...(region ? region.answers : []).map(([word, similarity]) =>
        make("span", colour(word), `${this.words[word]} ${number(similarity)}`),
      ),
    );
    ways.name(region ? region.answers.map((own) => own[0]) : null);
  }
}

export function cards(hits, words, ways) {
  const scale = scaleOf(hits);
  return hits.map((hit, at) => new Card(hit, at + 1, words, scale, ways));
}

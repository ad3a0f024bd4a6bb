"""Style and script of the pages, which hold all they need: nothing is fetched from anywhere."""

# Whatever a page should ever contain, a browser fetches nothing for it.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"

CSS = """
:root{--ink:#1b1f24;--soft:#5b6470;--rule:#d9dee4;--back:#fff;--c0:#1f6fb2;--c1:#d9822b;--hit:#e3f3e6}
@media (prefers-color-scheme:dark){:root{--ink:#e8eaed;--soft:#a2abb6;--rule:#3a414a;--back:#15181c;
--c0:#62aeea;--c1:#f0a95b;--hit:#1d3a25}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--back);margin:2rem auto;
max-width:1100px;padding:0 1rem}
h1{font-size:1.5rem}h2{margin-top:2.2rem;border-bottom:1px solid var(--rule)}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .7rem;text-align:right;border-bottom:1px solid var(--rule)}
th:first-child,td:first-child{text-align:left}
small,figcaption,.about dt{color:var(--soft)}
.about{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem}.about dd{margin:0}
.plots{display:flex;flex-wrap:wrap;gap:1rem}figure{margin:0;width:380px;max-width:100%}
svg text{font-size:10px;fill:var(--soft)}.grid{stroke:var(--rule)}.range{stroke:var(--ink)}
.c0{fill:var(--c0)}.c1{fill:var(--c1)}.line{fill:none;stroke-width:2}
.line.c0{stroke:var(--c0)}.line.c1{stroke:var(--c1)}svg.interval{width:120px;height:14px}
.key{display:inline-block;width:.7em;height:.7em;margin:0 .3em 0 .6em}
.k0{background:var(--c0)}.k1{background:var(--c1)}
.best{font-weight:700}
.example{border:1px solid var(--rule);border-radius:6px;padding:.6rem;margin:.6rem 0}
.example small{display:block}.example ol{display:flex;flex-wrap:wrap;gap:.5rem;padding-left:1.2rem}
.example ol.i2t{display:block}.example li{padding:.1rem .4rem}.hit{background:var(--hit)}
.words{display:flex;flex-wrap:wrap;gap:1rem}.words figure{width:320px}
.words img{display:block;max-width:100%;height:auto}
.picture{display:inline-block;width:112px;height:112px;background:center/contain no-repeat}
input{font:inherit;padding:.3rem;width:20rem;max-width:100%}
"""

SCRIPT = """
const box = document.getElementById("filter");
if (box) box.addEventListener("input", () => {
  const wanted = box.value.toLowerCase();
  for (const item of document.querySelectorAll(".example")) {
    const names = [...item.querySelectorAll("[title]")].map(x => x.title);
    const text = [item.textContent, ...names].join(" ");
    item.hidden = !text.toLowerCase().includes(wanted);
  }
});
"""

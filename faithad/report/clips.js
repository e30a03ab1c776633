// A study's page: a cursor that moves through all maps of a clip with its sound.
"use strict";
(() => {
  const articles = [...document.querySelectorAll("article:has(audio)")];
  for (const article of articles) {
    const audio = article.querySelector("audio");
    const cursors = [...article.querySelectorAll(".timed[data-from]")].map((strip) => {
      const cursor = strip.appendChild(document.createElement("i"));
      cursor.className = "cursor";
      cursor.hidden = true;
      return [strip.dataset, cursor];
    });
    const place = () => {
      for (const [{ from, to, left, right }, cursor] of cursors) {
        const share = (audio.currentTime - from) / (to - from);
        cursor.hidden = share < 0 || share > 1;
        cursor.style.left = `${100 * (Number(left) + share * (right - left))}%`;
      }
      if (!audio.paused) requestAnimationFrame(place);
    };
    audio.addEventListener("play", () => {
      for (const other of articles) if (other !== article) other.querySelector("audio").pause();
      place();
    });
    audio.addEventListener("seeked", place);
  }
})();

for (const gallery of document.querySelectorAll(".frames")) {
  const frames = [...gallery.querySelectorAll("figure")];
  const bar = gallery.querySelector(".slider");
  const [slider, label] = [bar.querySelector("input"), bar.querySelector("output")];
  const show = () => frames.forEach((frame, place) => {
    frame.hidden = place !== Number(slider.value);
    if (!frame.hidden) label.textContent = frame.dataset.label;
  });
  slider.max = slider.value = frames.length - 1;
  bar.hidden = frames.length < 2;
  slider.addEventListener("input", show);
  show();
}

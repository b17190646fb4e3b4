for (const slider of document.querySelectorAll(".compare input")) {
  const show = () => slider.parentElement.style.setProperty("--at", slider.value + "%");
  slider.addEventListener("input", show);
  show(); // a browser may have kept the place over a reload
}

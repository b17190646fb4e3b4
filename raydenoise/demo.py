"""The demonstration behind `make demo`: real photographs with synthetic noise through the main job, with references.

python -m raydenoise.demo demo
"""

import sys
from pathlib import Path

import numpy as np
import PIL.Image
import skimage.data

from raydenoise import cli
from raydenoise.core.metrics import as_float
from raydenoise.core.noise import add_awgn, quantize
from raydenoise.data.manifest import PAGE, Output
from raydenoise.report.sheets import caption, contact_sheet, read_metrics

# Photographs inside scikit-image's wheel, with the noise they get here (8-bit grey levels).
PHOTOGRAPHS = {"astronaut": 25, "chelsea": 15, "coffee": 50, "rocket": 35, "camera": 25, "coins": 15}
SHEET = "contact-sheet.png"


def main(folder: Path) -> int:
    """Write noisy and clean pictures, denoise them, draw the sheet, write the report, say where everything is."""
    for index, (name, sigma) in enumerate(PHOTOGRAPHS.items()):
        clean = getattr(skimage.data, name)()
        noisy = quantize(add_awgn(as_float(clean), sigma=sigma, rng=np.random.default_rng(index)))
        for kind, picture in (("clean", clean), ("noisy", np.rint(noisy * 255).astype(np.uint8))):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(picture).save(folder / kind / f"{name}.png")
    output = Output(folder / "out")
    print(f"raydenoise denoise {folder / 'noisy'} --output {output.root} --reference {folder / 'clean'}", flush=True)
    arguments = [str(folder / "noisy"), "--output", str(output.root), "--reference", str(folder / "clean")]
    status = cli.main(["denoise", *arguments, "--overwrite"])
    if status != cli.DONE:
        return status
    contact_sheet(output, path=folder / "out" / SHEET)
    status = cli.main(["report", str(output.root), "--quiet"])
    if status != cli.DONE:
        return status
    print()
    for row in read_metrics(output):
        print("  " + caption(row))
    print(f"\ndenoised pictures  {output.images}")
    print(f"metrics table      {output.metrics}")
    print(f"before and after   {output.root / SHEET}")
    print(f"report             {output.root / PAGE}")
    return cli.DONE


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo")))

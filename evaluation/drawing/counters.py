"""What drawing a grid took."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace


@dataclass
class Counters:
    """Work that was really done.

    Args:
        pipeline_loads, text_encodes, weight_rebuilds: How often.
        unet_rows: Evaluated.
        unet_rows_unshared: That the same pictures take if each is drawn alone.
        decodes, pictures: Pictures decoded, pictures committed.
        unet_s, vae_s: Seconds in UNet and VAE, the device's work included.
        wall_s: Seconds of rendering in all.
        peak_mib: Most memory that tensors took on a CUDA device; 0 on the CPU.
    """

    pipeline_loads: int = 0
    text_encodes: int = 0
    weight_rebuilds: int = 0
    unet_rows: int = 0
    unet_rows_unshared: int = 0
    decodes: int = 0
    pictures: int = 0
    unet_s: float = 0.0
    vae_s: float = 0.0
    wall_s: float = 0.0
    peak_mib: float = 0.0

    def plus(self, other: Counters) -> Counters:
        """Both together."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        summed = Counters(*(one + two for one, two in pairs))
        return replace(summed, peak_mib=max(self.peak_mib, other.peak_mib))

    @property
    def efficiency(self) -> float:
        """Share of the wall time that UNet and VAE ran; 1 where nothing was drawn.

        It tells what loading, encoding, rebuilding, samplers and files cost beside them. It does
        not tell whether UNet and VAE themselves ran as fast as the device could.
        """
        return (self.unet_s + self.vae_s) / self.wall_s if self.pictures else 1.0

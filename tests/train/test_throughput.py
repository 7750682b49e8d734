"""Advice on what slows a run down."""

import os

from idmm_fast.loader import MultiCropLoader, Views
from idmm_fast.train import throughput


def test_advice_on_waiting_for_data_is_printed_once(jpg_beton, monkeypatch, capsys):
    monkeypatch.setattr(throughput, "MIN_EPOCH_SECONDS", 0.0)
    loader = MultiCropLoader(jpg_beton, 8, num_workers=1, views=[Views(2, 16)])
    meter = throughput.Throughput(loader, 80, 0, "train")
    meter.end_epoch()
    assert capsys.readouterr().out == ""
    for _ in range(2):
        loader.waited += 10
        meter.end_epoch()
    shown = capsys.readouterr().out
    assert shown.count("spent waiting for data") == 1
    assert "--mode raw" in shown
    assert "--max-resolution 64" in shown
    assert ("--data.num_workers, now 1" in shown) == (len(os.sched_getaffinity(0)) > 1)

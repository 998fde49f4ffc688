"""The route of float32 products: exact whatever the surrounding program wants, and nothing of it is changed."""

import pytest
import torch

from gramfuse_shared.merging import exact_products as module
from gramfuse_shared.merging.exact_products import cpu_route, exact_products


@pytest.fixture(params=["ieee", "bf16", "tf32"])
def surrounding(request):
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = request.param
    yield request.param
    torch.backends.mkldnn.matmul.fp32_precision = before


@pytest.fixture
def fresh_probe():
    cpu_route.cache_clear()
    yield
    cpu_route.cache_clear()


def test_products_are_exact_within_and_as_before_behind(surrounding, fresh_probe):
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(300, 300, generator=generator) for _ in range(2))
    with exact_products():
        product = left @ right
    expected = left.double() @ right.double()
    assert float((product - expected).norm() / expected.norm()) < module.MOST_ERROR
    assert torch.backends.mkldnn.matmul.fp32_precision == surrounding


def test_an_error_within_restores_too(surrounding):
    with pytest.raises(KeyError), exact_products():
        raise KeyError
    assert torch.backends.mkldnn.matmul.fp32_precision == surrounding


@pytest.mark.parametrize(("vendor", "expected"), [("AuthenticAMD", "bf16"), ("GenuineIntel", "ieee"), ("", "ieee")])
def test_the_other_route_is_taken_where_mkl_is_slow_and_both_are_exact(monkeypatch, fresh_probe, vendor, expected):
    monkeypatch.setattr(module, "_vendor", lambda: vendor)
    monkeypatch.setattr(module, "MOST_ERROR", 1.0)  # as on a CPU without bfloat16 units, where both are exact
    assert cpu_route() == expected


def test_a_route_that_rounds_is_never_taken(monkeypatch, fresh_probe):
    monkeypatch.setattr(module, "_vendor", lambda: "AuthenticAMD")
    monkeypatch.setattr(module, "MOST_ERROR", 0.0)  # no product is that exact
    assert cpu_route() == "ieee"


def test_trying_a_route_leaves_the_surrounding_setting(surrounding, fresh_probe, monkeypatch):
    monkeypatch.setattr(module, "_vendor", lambda: "AuthenticAMD")
    cpu_route()
    assert torch.backends.mkldnn.matmul.fp32_precision == surrounding


@pytest.mark.parametrize(
    ("lines", "processor", "expected"),
    [
        ("processor\t: 0\nvendor_id\t: AuthenticAMD\n", "", "AuthenticAMD"),
        ("processor\t: 0\n", "AMD64 Family 25 Model 1 Stepping 1, AuthenticAMD", "AuthenticAMD"),
        (None, "arm", "arm"),
        (None, "", ""),
    ],
)
def test_the_maker_is_read_where_the_system_tells_it(monkeypatch, tmp_path, lines, processor, expected):
    if lines is not None:
        (tmp_path / "cpuinfo").write_text(lines)
    monkeypatch.setattr(module, "_CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(module.platform, "processor", lambda: processor)
    assert module._vendor() == expected

"""ONNX: a fresh network leaves the library with the same values, and the process as it was."""

import numpy as np
import pytest
import torch
from conftest import small_net


@pytest.mark.slow
def test_onnx_gives_the_same_values_and_training_goes_on(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net = small_net((8, 8))
    inputs = torch.randn(2, 2, 8, 8), torch.rand(2), torch.tensor([0, 1])
    with torch.no_grad():
        expected = net(*inputs)
    path = tmp_path / "net.onnx"
    torch.onnx.export(net, inputs, path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path)
    names = [each.name for each in session.get_inputs()]
    (out,) = session.run(None, dict(zip(names, [each.numpy() for each in inputs], strict=True)))
    np.testing.assert_allclose(out, expected.numpy(), atol=1e-4, rtol=1e-3)
    again = small_net((8, 8)).train()
    result = again(*inputs)
    result.square().sum().backward()
    torch.testing.assert_close(result.detach(), expected)
    assert all(p.grad is not None for p in again.parameters())

"""The images: how large, what is not in them, and how little they may do."""

import time

SERVICE_LIMIT_BYTES = 450_000_000
HARDENED = ("--rm", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--network", "none")


def in_image(engine, image, code, *, check=True):
    """Run Python in an image with nothing writable but /tmp."""
    return engine.docker(
        "run", *HARDENED, "--entrypoint", "python", image, "-W", "ignore", "-c", code, check=check
    ).strip()


def test_the_service_image_is_small(engine, images, figures):
    size = engine.inspect(images.service)["Size"]
    figures.add("service_image_mb", round(size / 1e6))
    figures.add("training_image_mb", round(engine.inspect(images.training)["Size"] / 1e6))
    assert size < SERVICE_LIMIT_BYTES


def test_the_service_image_has_no_part_of_the_offline_side_and_no_installer(engine, images):
    names = ["torch", "onnx", "polars", "pyarrow", "training", "export", "pip"]
    code = f"import importlib.util as u; print([n for n in {names} if u.find_spec(n)])"
    assert in_image(engine, images.service, code) == "[]"


def test_the_service_imports_with_everything_read_only(engine, images):
    code = "import service.server, onnxruntime; print(onnxruntime.get_available_providers())"
    assert "CPUExecutionProvider" in in_image(engine, images.service, code)


def test_the_training_image_has_torch_without_cuda(engine, images):
    code = "import torch, training.cli, export.cli; print(torch.version.cuda)"
    assert in_image(engine, images.training, code) == "None"


def test_nobody_is_root_and_the_user_is_a_number(engine, images):
    for name in (images.service, images.training):
        assert engine.inspect(name)["Config"]["User"] == "10001:10001"
    assert in_image(engine, images.service, "import os; print(os.getuid(), os.getgid())") == "10001 10001"


def test_nothing_but_the_temporary_folder_can_be_written(engine, images):
    code = """
import os
for folder in ("/", "/opt/app", "/models", "/work", "/etc"):
    try:
        open(os.path.join(folder, "x"), "w")
    except OSError:
        continue
    print(folder)
open("/tmp/x", "w")
"""
    assert in_image(engine, images.service, code) == ""


def test_check_says_what_is_missing_and_fails(engine, images):
    done = engine.docker("run", *HARDENED, images.service, "check", "--json", check=False)
    assert '"ok": false' in done
    assert "aliases.json" in done or "stable" in done


def test_a_service_without_a_bundle_lives_and_is_not_healthy(engine, images):
    """The health check asks for readiness, which comes with a bundle."""
    container = engine.docker(
        "run", "-d", *HARDENED[1:], "--health-interval", "1s", "--health-start-period", "1s", images.service
    ).strip()
    try:
        end = time.monotonic() + 60
        while engine.inspect(container)["State"]["Health"]["Status"] == "starting":
            assert time.monotonic() < end, engine.docker("logs", container)
            time.sleep(0.5)
        state = engine.inspect(container)["State"]
        assert (state["Running"], state["Health"]["Status"]) == (True, "unhealthy")
    finally:
        engine.docker("rm", "-f", container)

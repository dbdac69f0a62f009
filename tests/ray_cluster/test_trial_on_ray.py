from launcher.ray_cluster.trial_on_ray import environment_of_rank


def node(name, port, **hiding):
    return {"node": name, "address": f"10.0.0.{name}", "port": port, "hiding": hiding, "host": "h", "missing": []}


def test_each_rank_knows_its_place_and_sees_the_gpus_of_its_node():
    gpus = [("1", "4"), ("1", "6"), ("2", "0")]
    found = [node(name, 7000 + i, CUDA_VISIBLE_DEVICES=gpu) for i, (name, gpu) in enumerate(gpus)]
    got = [environment_of_rank(rank, found, "gpu") for rank in range(3)]
    assert [(own["RANK"], own["LOCAL_RANK"], own["LOCAL_WORLD_SIZE"]) for own in got] == [
        ("0", "0", "2"),
        ("1", "1", "2"),
        ("2", "0", "1"),
    ]
    assert [own["CUDA_VISIBLE_DEVICES"] for own in got] == ["4,6", "4,6", "0"]
    assert all((own["MASTER_ADDR"], own["MASTER_PORT"], own["WORLD_SIZE"]) == ("10.0.0.1", "7000", "3") for own in got)


def test_a_rank_alone_has_no_number_and_on_a_cpu_no_gpu():
    assert environment_of_rank(0, [node("1", 7000, CUDA_VISIBLE_DEVICES="3")], "cpu") == {
        "CUDA_VISIBLE_DEVICES": "",
        "LAUNCHER_DEVICES": "cpu",
    }

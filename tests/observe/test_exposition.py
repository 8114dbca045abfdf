from prometheus_client.parser import text_string_to_metric_families

from relay.observe.exposition import Page


def test_prometheus_reads_what_was_written():
    page = Page()
    odd = 'a "quoted" \\ name\nwith = {signs}, é'
    page.family("a_total", "counter", "Some.", [({"name": odd, "empty": ""}, 3), ({"name": "b", "empty": ""}, "0.5")])
    page.single("b", "gauge", "One.", 7)
    page.family("c_total", "counter", "None.", [])
    page.histograms("d", "Times.", ("0.5", "1"), [({"of": "x"}, (1, 2, 3), "9.25")])
    families = {family.name: family for family in text_string_to_metric_families(page.body().decode())}
    assert [(sample.labels, sample.value) for sample in families["a"].samples] == [
        ({"name": odd, "empty": ""}, 3.0), ({"name": "b", "empty": ""}, 0.5),
    ]  # fmt: skip
    assert (families["b"].type, families["b"].samples[0].value) == ("gauge", 7.0)
    assert families["c"].samples == []
    buckets = [(s.labels.get("le"), s.value) for s in families["d"].samples]
    assert buckets == [("0.5", 1.0), ("1", 3.0), ("+Inf", 6.0), (None, 9.25), (None, 6.0)]

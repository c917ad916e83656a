import pathlib
def sub(path, *pairs):
    p=pathlib.Path(path); s=p.read_text()
    for a,b in pairs:
        assert a in s, (path, a)
        s=s.replace(a,b)
    p.write_text(s)
sub('src/stillhouse/comparison/report.py',
('''def _published(entry''','''def _short(name: str) -> str:
    return name if len(name) <= 32 else f"{name[:31]}…"


def _published(entry'''),
('axes.set_yticks(list(rows), [entry["name"] for entry in models])','axes.set_yticks(list(rows), [_short(entry["name"]) for entry in models])'),
('axes.annotate(entry["name"], (x, y)','axes.annotate(_short(entry["name"]), (x, y)'))
s=pathlib.Path('benchmarks/papers_pretraining.py').read_text().splitlines(); print(s[83]); print(s[168]); print(pathlib.Path('benchmarks/papers_sst2.py').read_text().splitlines()[250])

"""The page in plain Japanese."""

from __future__ import annotations

from effvit_train.budgets import Budget, Verdict
from effvit_train.report import format as fmt
from effvit_train.report.frontier.privacy import Composed
from effvit_train.report.stream_facts import DATA, StreamFacts
from effvit_train.report.summary.choice import ACCURACY, Choice, Option
from effvit_train.report.summary.facts import Facts
from effvit_train.report.summary.sheet import (
    Part,
    Sheet,
    about,
    by_reason,
    half_width,
    kilowatt_hours,
    of_hundred,
    points,
    ratio,
    told,
)

LANGUAGE = "ja"
_TECHNIQUES = {
    "distill": "大きなモデルから知識を受け継いだもの（蒸留）", "prune": "不要な部分を削ったもの（枝刈り）",
    "dp_sgd": "プライバシー保証付きで学習したもの",
}  # fmt: skip
# Names of the measures that a limit is usually set on; others keep their English name.
_LABELS = {
    "quality/accuracy": "正解率", "quality/balanced_accuracy": "クラス平均の正解率", "cost/params": "パラメータ数",
    "cost/macs": "演算量（MACs）", "cost/flops": "演算量（FLOPs）", "cost/latency_ms": "1枚あたりの処理時間",
    "cost/latency_p95_ms": "1枚あたりの処理時間（95パーセンタイル）", "cost/throughput": "1秒あたりの処理枚数",
    "cost/memory_mb": "実行時のメモリ", "cost/size_mb": "ファイルサイズ", "cost/energy_j": "消費エネルギー",
    "cost/train_seconds": "学習時間", "robustness/corruption_accuracy": "劣化画像での正解率",
    "robustness/pgd_accuracy": "攻撃（PGD）下の正解率", "robustness/autoattack_accuracy": "攻撃（AutoAttack）下の正解率",
    "calibration/ece": "確信度の誤差（ECE）", "fairness/worst_group_accuracy": "最も低いグループの正解率",
    "fairness/accuracy_gap": "グループ間の正解率の差", "privacy/epsilon": "プライバシー損失 ε",
    "continual/average_accuracy": "全タスクの平均正解率", "continual/forgetting": "忘却の度合い",
    "privacy/delta": "プライバシー δ", "privacy/mia_auc": "学習データの推定攻撃（AUC）",
}  # fmt: skip
_SIGNS = {"<=": "以下", ">=": "以上", "<": "未満", ">": "超"}
_NOT_MEASURED = {
    "accuracy": ("正解率", "この値がなければ、採用を判断する根拠がありません"),
    "latency": ("処理速度", "実際に使う機器での確認が必要です"),
    "energy": ("消費電力", "運用コストや電池の持ちは分かりません"),
    "damage": (
        "ぼけ・ノイズ・照明不良などの画像",
        "現場の画像は、テスト画像より条件が悪いことがよくあります",
    ),
    "attack": ("意図的に細工された画像", "誤判定で利益を得る人がいる用途では、確認が必要です"),
    "groups": ("グループ別の正解率", "平均が高くても、特定のグループで低いことがあります"),
    "doubt": ("自信のなさを正しく示せるか", "判断に迷う画像を人に回す運用では、確認が必要です"),
    "foreign": ("対象外のものが写った画像", "自信を持って誤った分類をするおそれがあります"),
    "explanation": ("判断の根拠", "判断の理由を説明する必要がある用途では、確認が必要です"),
}
_VERDICT = {True: "満たしています", False: "満たしていません"}


def sheet(facts: Facts | None, choice: Choice, table: list[Option]) -> Sheet:
    """The page; arguments as in `english.sheet`."""
    if facts is None:
        return Sheet(
            LANGUAGE, "画像認識モデル：判断のための要約", _count(choice), "推奨できるモデルはありません。",
            [f"{_label(choice.y)}を測定したモデルがありません。"], False, [],
        )  # fmt: skip
    return Sheet(
        LANGUAGE,
        f"画像認識モデル（{facts.data}）：判断のための要約",
        _count(choice),
        _verdict(facts, choice),
        _lead(facts, choice),
        choice.met,
        [[_accuracy(facts), _risk(facts)], [_cost(facts), _missing(facts)]],
        ("", "正解率", "1枚の処理時間", "ファイル", "条件" if _bounded(choice) else "")
        if len(table) > 1
        else (),
        [_row(option, choice) for option in table] if len(table) > 1 else (),
        "推奨と代替案" if choice.met else "候補の一覧",
        _foot(facts),
    )


def _count(choice: Choice) -> str:
    if choice.runs == 1:
        text = "対象：学習済みモデル1個"
    else:
        text = f"比較の対象：学習済みモデル{choice.runs}個（{choice.arms}種類）"
    return text + (f"。別のデータで学習した{choice.elsewhere}個は含みません" if choice.elsewhere else "")


def _name(model: str, techniques: tuple[str, ...]) -> str:
    done = "、".join(_TECHNIQUES.get(name, name) for name in techniques)
    return f"{model}、{done}" if done else model


def _label(key: str) -> str:
    return _LABELS.get(key) or fmt.measure_of(key).label


def _bounded(choice: Choice) -> bool:
    return bool(choice.chosen and choice.chosen.verdicts)


def _verdict(facts: Facts, choice: Choice) -> str:
    name = _name(facts.model, facts.techniques)
    if choice.met:
        every = "すべての条件を満たしています。" if _bounded(choice) else ""
        return f"{'対象のモデル' if choice.runs == 1 else '推奨するモデル'}：{name}。{every}"
    if choice.runs == 1:
        return f"このモデルには、満たしていない条件があります：{name}。"
    return f"すべての条件を満たすモデルはありません。最も近いのは次のモデルです：{name}。"


def _lead(facts: Facts, choice: Choice) -> list[str]:
    found = []
    chosen, best = choice.chosen, choice.best
    if choice.met and choice.runs > 1 and chosen is not None and best is not None:
        among = f"条件を満たす{choice.meeting}種類" if _bounded(choice) else f"{choice.arms}種類"
        if _bounded(choice) and choice.meeting == 1:
            found.append("条件を満たすのは、この種類だけです。")
        elif chosen is best:
            found.append(f"{among}のうち、{_label(choice.y)}が最も優れています。")
        else:
            found.append(
                f"{among}のうち、{_label(choice.y)}が最も優れているのは{best.arm.label}（{told(choice.y, best.y)}）です。"
                f"推奨するモデルは{told(choice.y, chosen.y)}で、その差は偶然の範囲内です。一方、{_label(choice.x)}は"
                f"{told(choice.x, chosen.x)}で、{told(choice.x, best.x)}よりも明らかに優れています。"
            )
    found += [_judged(verdict) for verdict in (chosen.verdicts if chosen else ())]
    for budget, nearest in choice.nearest:
        seen = (
            "値のあるモデルがありません"
            if nearest is None
            else f"最も近い値は{told(budget.key, nearest)}です"
        )
        found.append(
            f"「{_label(budget.key)}が{_limit(budget)}」という条件を満たすモデルはありません。{seen}。"
        )
    return found


def _judged(verdict: Verdict) -> str:
    name, limit = _label(verdict.budget.key), _limit(verdict.budget)
    if verdict.value is None:
        return f"{name}：条件は{limit}ですが、値が不明なため、満たしていないものとして扱います（{verdict.reason}）。"
    number = told(verdict.budget.key, verdict.value)
    return f"{name}：{number}です。条件（{limit}）を{_VERDICT[verdict.met]}。"


def _limit(budget: Budget) -> str:
    return f"{told(budget.key, budget.limit)}{_SIGNS[budget.sign]}"


def _accuracy(facts: Facts) -> Part:
    share = facts.get(ACCURACY)
    if share is None:
        return Part("正確さ", "", "", ["測定していません。"])
    right, total = of_hundred(share)
    lines = [
        f"学習に使っていない画像{total:,}枚のうち、{right}枚を正しく分類します（{fmt.percent(share)}）。"
    ]
    if facts.interval and facts.tested:
        scale = points(half_width(facts.interval) * total / 100)
        lines.append(
            f"テスト画像は{facts.tested:,}枚です。テスト画像の選び方だけで、"
            f"{total:,}枚あたり±{scale}枚ほど変わります（95 %信頼区間）。"
        )
    if facts.seeds:
        count, low, high = facts.seeds
        lines.append(
            f"乱数を変えて{count}回学習した結果は、{fmt.percent(low)}から{fmt.percent(high)}でした。"
        )
    if facts.guessing:
        lines.append(f"無作為に答えた場合の正解は、100枚のうち約{of_hundred(facts.guessing)[0]}枚です。")
    ece = facts.get("calibration/ece")
    if ece is not None:
        lines.append(f"モデルが示す確信度と実際の正解率との差は、平均{points(ece)}ポイントです。")
    sure = facts.get("calibration/accuracy_at_80pct_coverage")
    if sure is not None:
        lines.append(f"自信の低い2割の画像を人が確認する場合、残り8割の正解率は{fmt.percent(sure)}です。")
    return Part("正確さ", right, f"枚が正解（{total:,}枚中）", lines)


def _cost(facts: Facts) -> Part:
    latency, lines = facts.get("cost/latency_ms"), []
    processor, threads = facts.conditions
    if latency is not None and latency > 0:
        where = f"{processor}" if processor else "測定した機器"
        where += f"（{threads}スレッド）" if threads else ""
        lines.append(
            f"{where}で、画像1枚の処理に{fmt.milliseconds(latency)}かかります。1枚ずつ処理して、1分間に約"
            f"{about(60_000 / latency)}枚です。"
        )
    throughput = facts.get("cost/throughput")
    if throughput is not None:
        lines.append(f"まとめて処理する場合は、1秒間に約{about(throughput)}枚です。")
    size, memory = facts.get("cost/size_mb"), facts.get("cost/memory_mb")
    if size is not None:
        needs = f"、実行に必要なメモリは{fmt.megabytes(memory)}" if memory is not None else ""
        lines.append(f"ファイルの大きさは{fmt.megabytes(size)}{needs}です。")
    energy = facts.get("cost/energy_j")
    if energy is not None:
        lines.append(f"100万枚の処理に使う電力量は{kilowatt_hours(energy)} kWhです。")
    seconds = facts.get("cost/train_seconds")
    if seconds is not None:
        lines.append(f"学習にかかった時間は{_duration(seconds)}です。")
    if (other := facts.against) is not None:
        parts = []
        if other.smaller is not None:
            parts.append(
                f"ファイルは{ratio(other.smaller)}分の1"
                if other.smaller >= 1
                else f"ファイルは{ratio(other.smaller)}倍"
            )
        if other.faster is not None:
            parts.append(
                f"速さは{ratio(other.faster)}倍"
                if other.faster >= 1
                else f"処理時間は{ratio(other.faster)}倍"
            )
        if other.points is not None:
            way = "高い" if other.points > 0 else "低い"
            by = f"正解率は{points(other.points)}ポイント{way}値" + (
                "（偶然の範囲内）" if other.chance else ""
            )
            parts.append("正解率は同じ" if other.points == 0 else by)
        if parts:
            lines.append(f"同じモデルにこの処理を施さない場合と比べて、{'、'.join(parts)}です。")
    number = fmt.milliseconds(latency) if latency is not None else ""
    return Part("コスト", number, "画像1枚あたり" if number else "", lines or ["測定していません。"])


def _risk(facts: Facts) -> Part:
    lines = [] if facts.stream is None else [_learnt(facts.stream)]
    damaged = facts.get("robustness/corruption_accuracy")
    if damaged is not None:
        lines.append(f"ぼけやノイズなどで劣化した画像：{_of(damaged)}が正解です。")
    attacked = facts.get("robustness/autoattack_accuracy")
    attacked = facts.get("robustness/pgd_accuracy") if attacked is None else attacked
    if attacked is not None:
        lines.append(f"人が気づかないほどわずかに、意図的に細工された画像：{_of(attacked)}が正解です。")
    worst = facts.get("fairness/worst_group_accuracy")
    if worst is not None:
        group = f"（{facts.worst_group}）" if facts.worst_group else ""
        lines.append(f"正解率が最も低いグループ{group}：{_of(worst)}が正解です。")
    foreign = facts.get("calibration/ood_auroc")
    if foreign is not None:
        lines.append(
            "対象の画像と対象外の画像を1枚ずつ見せたとき、自信のなさから"
            f"{_of(foreign, '組')}で見分けられます（無作為の場合は100組のうち50組）。"
        )
    epsilon, members = facts.get("privacy/epsilon"), facts.get("privacy/mia_auc")
    if epsilon is not None and facts.attacker is not None:
        lines.append(
            f"プライバシーの保証があります（ε＝{fmt.significant(epsilon)}）。ある画像が学習に使われたかどうかを推測しても、"
            f"的中するのは最大でも{_of(facts.attacker, '回')}です（無作為の場合は100回のうち50回）。"
        )
        lines += _search(facts.search)
    else:
        lines.append("プライバシーの保証はありません。学習に使った画像が推測されるおそれがあります。")
    if members is not None:
        lines.append(
            f"簡単な攻撃を試したところ、学習に使った画像とそうでない画像を、{_of(members, '組')}で見分けられました"
            "（無作為の場合は100組のうち50組）。より強力な攻撃がある可能性があります。"
        )
    return Part("リスク", "", "", lines)


def _learnt(stream: StreamFacts) -> str:
    """As in `english`."""
    text = f"データを{len(stream.tasks)}回に分けて、順に学習したモデルです。"
    last = stream.accuracy[-1]
    if stream.kind == DATA:
        first = stream.accuracy[stream.rows[0]]
        return f"{text}正解率は、最初の学習後が{fmt.percent(first[-1])}、最後の学習後が{fmt.percent(last[-1])}です。"
    worst = stream.forgotten
    if worst is None:
        return f"{text}後の学習によって、以前に学んだ内容の正解率が下がることはありませんでした。"
    doubt = "（偶然の範囲内の差です）" if worst.chance else ""
    return (
        f"{text}後の学習によって以前に学んだ内容を忘れることがあり、最も忘れたのは{worst.task + 1}回目の内容"
        f"（{stream.tasks[worst.task].name}）です。その画像の正解率は{fmt.percent(worst.best)}でしたが、現在は"
        f"{fmt.percent(worst.end)}です{doubt}。"
    )


def _search(spent: Composed | None) -> list[str]:
    if spent is None:
        return []
    if spent.method == "own":
        return ["複数のプライバシー保証付き学習から選んだ場合は、それらの損失も加わります。"]
    count = spent.trials + spent.unfinished + spent.unknown
    if spent.epsilon is None:
        return [
            f"同じデータでの{count}回の学習から選んだものですが、全体のプライバシー損失には上限を示せません。"
        ]
    return [
        f"同じデータでの{count}回のプライバシー保証付き学習から選んだものです。選択まで含めた全体の損失は"
        f"ε＝{fmt.significant(spent.epsilon)}になります。"
    ]


def _missing(facts: Facts) -> Part:
    lines = [f"{_NOT_MEASURED[topic][0]}：{_NOT_MEASURED[topic][1]}。" for topic in facts.missing]
    lines.append(
        "別の環境の画像：テストはすべて学習データと同じ出所の画像によるものです。実際の画像での確認をお勧めします。"
    )
    return Part("測定していないこと", "", "", lines)


def _of(share: float, unit: str = "枚") -> str:
    right, total = of_hundred(share)
    return f"{total:,}{unit}のうち{right}{unit}"


def _duration(seconds: float) -> str:
    return (
        fmt.duration(seconds).replace(" h", "時間").replace(" min", "分").replace(" s", "秒").replace(" ", "")
    )


def _row(option: Option, choice: Choice) -> tuple[str, ...]:
    card = option.entry.card
    cells = [option.arm.label + (" ←" if choice.met and option is choice.chosen else "")]
    cells += [fmt.value(key, card.measures.get(key)) for key in (ACCURACY, "cost/latency_ms", "cost/size_mb")]
    return (*cells, ("満たす" if option.met else "満たさない") if _bounded(choice) else "")


def _foot(facts: Facts) -> list[str]:
    reasons = [
        f"{'、'.join(_NOT_MEASURED[topic][0] for topic in topics)}：{reason}"
        for reason, topics in by_reason(facts.missing).items()
    ]
    return [
        *([f"測定していない理由（記録の原文）：{'／'.join(reasons)}"] if reasons else []),
        f"数値はすべて測定値で、{facts.place}（{facts.label}）のカードによるものです。詳しくは同じ場所のcard.htmlをご覧ください。同じ種類を"
        "複数回学習した場合は、平均に最も近いものを代表としています。正解率が最も高いものを推奨しています。ただし、"
        "コストが1割を超えて低く、正解率の差が偶然の範囲内のものがあれば、それを推奨しています。",
    ]

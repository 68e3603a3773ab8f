"""The words of the page, in English and Chinese."""

from collections.abc import Sequence
from typing import Literal

Lang = Literal["en", "zh"]

ENGLISH = {
    "title": "Watching {name}",
    "several": "Watching {count} runs",
    "step": "step",
    "of_steps": "of {steps}",
    "tokens": "tokens",
    "loss": "loss",
    "validation_loss": "validation loss",
    "best": "best {loss} at step {step}",
    "speed": "tokens/s",
    "step_time": "{seconds} a step",
    "left": "time left",
    "until": "done about {time}",
    "memory": "memory",
    "of_device": "device: {used} of {limit}",
    "of_host": "of the process",
    "state": "state",
    "silent": "nothing new for {time}",
    "rate": "learning rate",
    "run": "run",
    "runs": "Runs",
    "curves": "Curves",
    "checkpoints": "Checkpoints",
    "log": "Log",
    "report": "Report of the model",
    "saved": "saved",
    "size": "size",
    "kept": "kept because",
    "kept_newest": "one of the newest {count}",
    "kept_best": "one of the best {count} by {figure}",
    "kept_every": "every {count} steps",
    "kept_rollback": "a rollback goes back to it",
    "kept_needed": "another run needs it",
    "next_deleted": "nothing keeps it: the next save deletes it",
    "no_checkpoints": "No checkpoint yet.",
    "no_log": "No log yet.",
    "no_figures": "No figures yet: they come with the first step.",
    "axis": "over",
    "smoothing": "smoothing",
    "log_loss": "logarithmic loss",
    "hint": "Drag across a chart to zoom all of them; double-click to see everything.",
    "lost": "The server does not answer: it was ended, or the network is away. The page goes on when it answers again.",
    "reading": "reading",
    "waiting": "waiting to begin",
    "starting": "starting",
    "running": "running",
    "stuck": "stuck?",
    "done": "done",
    "stopped": "stopped",
    "failed": "failed",
    "killed": "Its process is gone without a word, as after a kill.",
    "chart_loss": "loss (validation dashed)",
    "chart_objective": "what training makes small",
    "chart_divergence": "divergence from the teacher",
    "chart_bits": "validation bits per byte",
    "chart_accuracy": "accuracy (validation dashed)",
    "chart_rate": "learning rate",
    "chart_gradient": "gradient norm",
    "chart_speed": "tokens per second",
    "chart_mfu": "MFU",
    "chart_seconds": "seconds a step",
    "chart_host": "memory of the process",
    "chart_device": "memory of the fullest device",
    "chart_balance": "balance of the experts",
    "chart_dropped": "dropped share of the experts' choices",
    "chart_pruned": "share of channels and heads that is left",
    "footer": "This page reads the run's folder and changes nothing in it. Nothing it shows leaves this machine.",
    "script": "This page needs JavaScript, which it loads from this server alone.",
    "report_making": "The report is being made; this takes a few seconds to a minute.",
    "report_failed": "The report could not be made: {error}",
    "back": "back to the run",
}

CHINESE = {
    "title": "正在观察 {name}",
    "several": "正在观察 {count} 个训练",
    "step": "步数",
    "of_steps": "共 {steps} 步",
    "tokens": "token 数",
    "loss": "损失",
    "validation_loss": "验证损失",
    "best": "最佳 {loss}，第 {step} 步",
    "speed": "token/秒",
    "step_time": "每步 {seconds}",
    "left": "剩余时间",
    "until": "约 {time} 完成",
    "memory": "内存",
    "of_device": "设备：{used} / {limit}",
    "of_host": "进程所用",
    "state": "状态",
    "silent": "已有 {time} 没有新内容",
    "rate": "学习率",
    "run": "训练",
    "runs": "训练列表",
    "curves": "曲线",
    "checkpoints": "检查点",
    "log": "日志",
    "report": "模型报告",
    "saved": "保存于",
    "size": "大小",
    "kept": "保留原因",
    "kept_newest": "最新的 {count} 个之一",
    "kept_best": "按 {figure} 最好的 {count} 个之一",
    "kept_every": "每 {count} 步保留",
    "kept_rollback": "回滚时要用",
    "kept_needed": "另一个训练需要它",
    "next_deleted": "没有规则保留它：下次保存时会被删除",
    "no_checkpoints": "还没有检查点。",
    "no_log": "还没有日志。",
    "no_figures": "还没有数据：第一步之后就会出现。",
    "axis": "横轴",
    "smoothing": "平滑",
    "log_loss": "损失用对数坐标",
    "hint": "在图上拖动可同时放大所有图；双击恢复全部。",
    "lost": "服务器没有应答：它已结束，或网络中断。恢复后页面会继续更新。",
    "reading": "正在读取",
    "waiting": "等待开始",
    "starting": "正在启动",
    "running": "训练中",
    "stuck": "可能卡住",
    "done": "已完成",
    "stopped": "已停止",
    "failed": "失败",
    "killed": "进程已消失且没有留下说明，例如被强制终止。",
    "chart_loss": "损失（虚线为验证）",
    "chart_objective": "训练目标",
    "chart_divergence": "与教师模型的散度",
    "chart_bits": "验证：每字节比特数",
    "chart_accuracy": "准确率（虚线为验证）",
    "chart_rate": "学习率",
    "chart_gradient": "梯度范数",
    "chart_speed": "每秒 token 数",
    "chart_mfu": "MFU",
    "chart_seconds": "每步秒数",
    "chart_host": "进程内存",
    "chart_device": "最满设备的内存",
    "chart_balance": "专家负载均衡",
    "chart_dropped": "专家选择被丢弃的比例",
    "chart_pruned": "剩余通道和注意力头的比例",
    "footer": "本页只读取训练文件夹，不作任何改动。页面内容不会离开这台机器。",
    "script": "本页需要 JavaScript，且只从本服务器加载。",
    "report_making": "报告正在生成，需要几秒到一分钟。",
    "report_failed": "报告无法生成：{error}",
    "back": "返回训练页",
}

WORDS: dict[Lang, dict[str, str]] = {"en": ENGLISH, "zh": CHINESE}


def language(accepted: str | None) -> Lang:
    """The language that a browser's Accept-Language asks for first, of those that there are."""
    for part in _by_weight(accepted or ""):
        if part.startswith("zh"):
            return "zh"
        if part.startswith("en"):
            return "en"
    return "en"


def _by_weight(accepted: str) -> Sequence[str]:
    weighted = []
    for place, part in enumerate(accepted.lower().split(",")[:50]):
        name, _, weight = part.strip().partition(";q=")
        try:
            weighted.append((-float(weight or 1), place, name))
        except ValueError:
            continue
    return [name for _, _, name in sorted(weighted)]

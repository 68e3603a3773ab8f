"""The sentences of a report in Chinese, by their English templates: facts, remarks and definitions."""

# What stands in holes, where it is words: patterns and what takes their place.
FRAGMENTS = (
    (r"\bprefill of batch (\d+) at (\d+)", r"预填充（批量 \1，长度 \2）"),
    (r"\bdecode of batch (\d+) at (\d+)", r"解码（批量 \1，缓存 \2）"),
    (r", (?=预填充|解码)", "、"),
    (r" and (\d+) more\b", r"等，另有 \1 项"),
)

# Holes carry over by name. A template whose beginning another's holes could swallow stands after it.
SENTENCES: dict[str, str] = {
    # Facts, as `stellarbyte info` words them.
    "yes": "有",
    "no": "无",
    "none": "无",
    "not said": "未说明",
    "none in safetensors files": "没有 safetensors 文件",
    "{layers} layers of {width}, {heads} heads ({kv} for keys and values), feed-forward {inner}, vocabulary {vocab}": (
        "{layers} 层，隐藏维度 {width}，{heads} 头（键值 {kv} 头），前馈 {inner}，词表 {vocab}"
    ),
    "{layers} layers of {width}, {heads} heads ({kv} for keys and values), {experts} experts, vocabulary {vocab}": (
        "{layers} 层，隐藏维度 {width}，{heads} 头（键值 {kv} 头），{experts} 个专家，词表 {vocab}"
    ),
    "{layers} layers of {width}, {heads} heads, feed-forward {inner}, vocabulary {vocab}": (
        "{layers} 层，隐藏维度 {width}，{heads} 头，前馈 {inner}，词表 {vocab}"
    ),
    "{layers} layers of {width}, {heads} heads, {experts} experts, vocabulary {vocab}": (
        "{layers} 层，隐藏维度 {width}，{heads} 头，{experts} 个专家，词表 {vocab}"
    ),
    "{number} tokens, special: none": "{number} 个词元，无特殊词元",
    "{number} tokens, special: {special}": "{number} 个词元，特殊词元：{special}",
    "{dtypes}, {number} bytes": "{dtypes}，{number} 字节",
    "{before} before, {after} quantised": "量化前 {before}，量化后 {after}",
    # Remarks on what is counted.
    "FLOPs and the cache are not counted, because config.json does not say how the layers attend": (
        "未计 FLOPs 和缓存，因为 config.json 没有说明各层的注意力"
    ),
    "the cache holds latent vectors, of which each decoding step makes all keys and values again": (
        "缓存保存潜在向量；每解码一个词元，都要由它们重新算出全部的键和值"
    ),
    "some matrices have names that are not known: each is counted once a token": (
        "有些矩阵的名称未知：每个按每词元一次计"
    ),
    "some layers do not attend: what their states take and cost is not counted": (
        "有些层没有注意力：其状态的内存和计算量未计"
    ),
    "activations are not foreseen, because the training of model_type {family} is not known": (
        "未估计激活值，因为不了解模型类型 {family} 的训练"
    ),
    "activations are foreseen by JAX, which is not installed: {command}": "激活值由 JAX 估计，但未安装：{command}",
    "activations are not foreseen, because {why}": "未估计激活值，原因：{why}",
    "the memory of training is not foreseen, because {why}": "未估计训练内存，原因：{why}",
    "training on a {platform} is not foreseen, because {why}": "未估计在 {platform} 上的训练，原因：{why}",
    "{path} holds no weights in safetensors files: all is counted by its config.json": (
        "{path} 没有 safetensors 权重文件：全部按其 config.json 计数"
    ),
    # What the weights' figures are.
    "the share of numbers whose size is below {part} of the matrix's root mean square ({share} of normally distributed "
    "ones)": "绝对值小于矩阵均方根 {part} 倍的数所占比例（正态分布时为 {share}）",
    "the share of numbers whose size is above {part} times the matrix's root mean square": (
        "绝对值大于矩阵均方根 {part} 倍的数所占比例"
    ),
    "the largest size, over the matrix's root mean square": "最大绝对值与矩阵均方根之比",
    "exp of the entropy of the singular values, taken as shares of their sum (Roy & Vetterli 2007); where the smaller "
    "side is above {side}, a randomised estimate, mostly within 1 %": (
        "奇异值占其总和之比例的熵的指数（Roy & Vetterli 2007）；短边大于 {side} 时为随机估计，误差多在 1 % 以内"
    ),
    "the effective rank, as a share of the smaller side": "有效秩占短边的比例",
    "the Frobenius norm of the change since the first weights, over the norm of these": (
        "相对初始权重之变化的 Frobenius 范数与初始权重的范数之比"
    ),
    "the largest difference between the distribution of the numbers and the normal distribution that they are drawn "
    "from at first (Kolmogorov and Smirnov), over up to {number} of them: 0 to 1": (
        "数值的分布与初始正态分布之间的最大差（Kolmogorov–Smirnov），最多取 {number} 个数：0 到 1"
    ),
    "{number} numbers take a while to look at: {option} does it all the same": (
        "查看 {number} 个数需要较长时间：仍要查看请用 {option}"
    ),
    "the weights of a run are read by JAX's libraries, which are not installed: {command}": (
        "运行的权重由 JAX 的库读取，但未安装：{command}"
    ),
    "of quantised weights the codes are not looked at: name the folder of floats that they were made from": (
        "不查看量化权重的编码：请指定量化前的浮点文件夹"
    ),
    # Speed, heads and text.
    "left out to stay within {seconds} s: {points}": "为不超过 {seconds} 秒，已略去：{points}",
    "left out for want of memory: {points}": "因内存不足，已略去：{points}",
    "the change of the loss of a token, in nats and to first order, if the head gave 0 (Michel et al. 2019): "
    "|Σ gradient · output|, on average over the tokens": (
        "若该头输出 0，词元损失的一阶变化，单位奈特（Michel 等，2019）：|Σ 梯度 · 输出|，对词元取平均"
    ),
    "where the heads of {name} look is not known, because {kind} does not give it": (
        "无法得知 {name} 的各头关注何处，因为 {kind} 不提供"
    ),
    "what the heads of {name} are worth is not known, because {kind} joins them otherwise": (
        "无法得知 {name} 各头的重要性，因为 {kind} 以其他方式合并它们"
    ),
    "of {tokens} tokens the first {shown} are shown; of {documents} documents the first": (
        "共 {tokens} 个词元，显示前 {shown} 个；共 {documents} 篇文档，显示第一篇"
    ),
    "of {tokens} tokens the first {shown} are shown": "共 {tokens} 个词元，显示前 {shown} 个",
    "of {documents} documents the first": "共 {documents} 篇文档，显示第一篇",
    # A step.
    "the weights are those after step {done}, of the newest checkpoint from before step {step}; gradients are those "
    "before training.prune has taken out what it prunes": (
        "权重为第 {done} 步之后的权重，来自第 {step} 步之前最新的检查点；梯度为 training.prune 剪枝之前的梯度"
    ),
    "the weights are those after step {done}, of the newest checkpoint from before step {step}": (
        "权重为第 {done} 步之后的权重，来自第 {step} 步之前最新的检查点"
    ),
    "gradients are those before training.prune has taken out what it prunes": "梯度为 training.prune 剪枝之前的梯度",
}

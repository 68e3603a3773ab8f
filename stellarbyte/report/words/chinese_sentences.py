"""The sentences of a report in Chinese, by their English templates: facts, remarks and definitions."""

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
    "some matrices have names that are not known: each is counted once a token": (
        "有些矩阵的名称未知：每个按每词元一次计"
    ),
    "activations are not foreseen: the training of a {family} is not known": "未估计激活值：不了解 {family} 的训练",
    "activations are foreseen by JAX, which is not installed: {command}": "激活值由 JAX 估计，但未安装：{command}",
    "activations are not foreseen, because {why}": "未估计激活值，原因：{why}",
    "the memory of training is not foreseen, because {why}": "未估计训练内存，原因：{why}",
    "training on a {platform} is not foreseen, because {why}": "未估计在 {platform} 上的训练，原因：{why}",
    "{path} holds no weights in safetensors files: all is counted by its config.json": (
        "{path} 没有 safetensors 权重文件：全部按其 config.json 计数"
    ),
}

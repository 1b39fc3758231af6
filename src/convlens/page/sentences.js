// What the server says where it cannot answer, in Chinese. The English is its own, word for word, with {} where it puts
// something in; a test looks each of them up in its code. What is not here is told in English.

import { state } from "./state.js";

const SENTENCES = [
  ["the data set {} is not on this disk; --data-dir says where it is", "这块磁盘上没有数据集 {0}；可用 --data-dir 指明位置"],
  ["the pictures are not at {} any more; --data-dir says where they are", "图片已不在 {0}；可用 --data-dir 指明位置"],
  ["the pictures in {} are not those that this run was trained on: some were changed, or their labels were", "{0} 中的图片与训练时不同：有些图片或标签改过"],
  ["the data set {} found now has other content than the one this run was trained on", "现在的数据集 {0} 与训练时的内容不同"],
  ["there is no ink in this picture: draw a digit in white on black", "这张图里没有笔迹：请在黑底上用白色写一个数字"],
  ["{} is not a picture that can be read (JPEG, PNG, WebP, GIF, TIFF or BMP)", "这不是能读取的图片（JPEG、PNG、WebP、GIF、TIFF 或 BMP）"],
  ["{} is damaged: {}", "文件已损坏：{1}"],
  ["{} is empty", "文件是空的"],
  ["{} claims {} x {} pixels; {} are allowed", "图片有 {1} × {2} 像素；最多允许 {3}"],
  ["{} claims {} x {} pixels; a side of {} is allowed", "图片有 {1} × {2} 像素；每边最多允许 {3}"],
  ["a request may have {} bytes", "文件太大：最多 {0} 字节"],
  ["the picture is not kept any more, the last {} are: give it once more", "这张图片已不在内存中（只保留最近 {0} 张）：请再给一次"],
  ["an image is named like test:0, not {}", "图像的名字应像 test:0，而不是 {0}"],
  ["{}:{}: the {} split has {} images, numbered from 0", "没有图像 {0}:{1}：{2} 部分有 {3} 张，从 0 开始编号"],
  ["there is no split {}: there are {}", "没有名为 {0} 的部分；有：{1}"],
  ["there is no run {}: {} opened, numbered from 0", "没有第 {0} 号训练结果：打开了 {1} 个，从 0 开始编号"],
  ["the network's answer to this picture is not finite", "网络对这张图片的回答不是有限的数"],
  ["the network's answer to this image is not finite: there is nothing to explain", "网络对这张图片的回答不是有限的数，无从解释"],
  ["the layer {} has no channel {}: they are numbered from 0 to {}", "层 {0} 没有通道 {1}：编号从 0 到 {2}"],
  ["the output of {} is {}: it has no number at {}", "{0} 的输出是 {1}：{2} 处没有数"],
  ["unknown layer {}", "没有名为 {0} 的层"],
  ["how a {} computes its numbers is not known here", "这里不知道 {0} 怎样计算它的数"],
  ["this network has no linear layer and no convolution: there is nothing to take for features", "这个网络既没有全连接层也没有卷积层，没有可用的特征"],
  ["attributions need captum: pip install 'convlens[explain]'", "热力图需要 captum：pip install 'convlens[explain]'"],
  ["the first epoch is not done: there is no network to ask yet", "第一轮还没有结束：还没有可以提问的网络"],
  ["the first epoch is not done: there is nothing to keep yet", "第一轮还没有结束：还没有可以保留的东西"],
  ["the weights of epoch {} were not kept; kept were: {}", "第 {0} 轮的权重没有保留；保留的有：{1}"],
  ["the training has gone on and saved another network since: ask for its answer anew", "训练已继续，并保存了另一个网络：请重新提问"],
  ["the training cannot be asked from here: press Ctrl-C where it runs, then convlens train --resume RUN --finish keeps what there is", "无法从这里停止训练：请在运行它的地方按 Ctrl-C，再用 convlens train --resume RUN --finish 保留成果"],
  ["the run {} is not being trained", "{0} 没有在训练"],
  ["the run {} is not finished; go on with: convlens train --resume {}", "{0} 的训练尚未完成；继续训练：convlens train --resume {1}"],
  ["the run folder {} is gone", "训练结果的文件夹 {0} 已不存在"],
  ["{} holds another kind of network by now: start convlens open anew", "{0} 里现在是另一种网络：请重新运行 convlens open"],
  ["what the network says is written down of a finished run's test images, not of the {} ones", "只有训练完成后才记录网络的回答，而且只记录测试图像的"],
  ["these two runs did not answer the same test images: there is nothing to dispute", "这两次训练没有回答过相同的测试图像，无从比较"],
  ["an error of the server, logged as {}", "服务器出错，日志编号 {0}"],
  ["the server is shutting down", "服务器正在关闭"],
].map(([english, chinese]) => [new RegExp(`^${english.replace(/[.*+?^$()|[\]\\]/g, "\\$&").replaceAll("{}", "(.*)")}$`), chinese]);

export function told(sentence) {
  if (state.language !== "zh") return sentence;
  const [pattern, chinese] = SENTENCES.find(([each]) => each.test(sentence)) ?? [];
  return pattern ? chinese.replace(/\{(\d)\}/g, (_, place) => sentence.match(pattern)[Number(place) + 1]) : sentence;
}

"""What crawled pages carry besides their text: the strings `weather` puts into documents and the junk pages it adds.

All of it is written for this project; names, handles, domains and numbers are made up. Placeholders in braces are
filled by `weather`.
"""

from __future__ import annotations

NAVIGATION = {
    "zh": (
        "首页 > {section} > {section2} > 正文", "首页 | {section} | {section2} | 图片 | 视频 | 登录 | 注册",
        "当前位置：网站首页 » {section} » 内容详情", "上一篇：没有了 下一篇：{section}精选 返回列表",
        "关于我们 | 联系我们 | 网站地图 | 友情链接 | 加入收藏 | 设为首页",
        "字号：大 中 小 打印 收藏 分享到：微博 微信 QQ空间", "阅读 {number} 评论 {small} 点赞 {small2} 收藏 分享",
    ),
    "en": (
        "Home > {section} > {section2} > Article",
        "Home | {section} | {section2} | Pictures | Videos | Log in | Sign up",
        "You are here: Home » {section} » Details", "« Previous: {section} Next: {section2} » Back to list",
        "About us | Contact us | Sitemap | Advertise | Careers | Terms of use",
        "Share on Facebook | Tweet | Pin it | Print this page",
        "{number} views {small} comments {small2} likes Share Save",
    ),
}
SECTIONS = {
    "zh": ("新闻", "文化", "生活", "旅游", "美食", "教育", "科技", "健康", "财经", "体育"),
    "en": (
        "News", "Culture", "Lifestyle", "Travel", "Food", "Education", "Technology", "Health", "Business",
        "Sports",
    ),
}
ADVERTS = {
    "zh": (
        "想要{product}的朋友请加微信：{handle}，现在下单立减{small}元，限时优惠，名额有限！",
        "【广告】厂家直销{product}，全场{discount}折，包邮到家，详情咨询 QQ：{qq}，点击购买送好礼。",
        "扫码关注公众号 {handle} 免费领取{product}，优惠券先到先得，加V信：{handle2}。",
        "{product}火热促销中！代理加盟请联系客服微信 {handle}，月入过万不是梦，立即咨询。",
    ),
    "en": (
        (
            "Buy {product} online now at the lowest price! Add us on WhatsApp {phone}, free shipping, "
            "limited time offer, {small}% off."
        ),
        (
            "SPONSORED: best deals on {product}. Order today and save {small}%. Contact Telegram "
            "@{handle} for a discount code."
        ),
        (
            "Click here to claim your free {product} coupon! Subscribe and message {handle} on Skype "
            "for a special promotion."
        ),
        (
            "Cheap {product} wholesale, money back guarantee. Call {phone} or text {handle} on WeChat, "
            "buy now, only {small} left in stock!"
        ),
    ),
}
PRODUCTS = {
    "zh": (
        "减肥茶", "护肤套装", "翡翠手镯", "学习机", "保健品", "二手车", "装修服务", "贷款服务", "游戏金币",
        "羽绒服",
    ),
    "en": (
        "weight loss pills", "designer watches", "car insurance", "running shoes", "skin care sets", "phone cases",
        "replica handbags", "web hosting",
    ),
}
COOKIES = {
    "zh": (
        "本网站使用 Cookie 来改善您的浏览体验。继续浏览即表示您同意我们的隐私政策和用户协议。",
        "我们使用 Cookie 分析流量并投放个性化内容，点击“接受全部”即表示同意使用条款。",
        "登录即代表您已阅读并同意《用户协议》和《隐私政策》。",
    ),
    "en": (
        (
            "This website uses cookies to improve your experience. By continuing to browse you accept "
            "our cookie policy and privacy policy."
        ),
        (
            "We use cookies to analyse traffic and personalise content. Click Accept all cookies to "
            "agree to our terms of use."
        ),
        "By signing in you agree to our Terms of Service and Privacy Policy.",
    ),
}
SCRIPTS = (
    (
        '<script type="text/javascript">var _st = _st || []; _st.push(["page", "{handle}"]); '
        'document.write("<div id=ad{small}></div>");</script>'
    ),
    '<script src="/static/js/{handle}.min.js" async></script>',
    "<style>.ad-{handle} {{ display:block; width:{number}px; margin:0 auto; }}</style>",
    "<a href=\"javascript:void(0)\" onclick=\"share('{handle}')\">",
    '<img src="/upload/{number}/{handle}.jpg" alt="" width="{small}">',
)
PARAGRAPH_TAGS = (
    ('<p class="txt">', "</p>"), ('<div style="text-indent:2em">', "</div>"), ("<p>", "<br/></p>"),
    ('<span lang="x">', "</span>"),
)
ENTITIES = (
    ("“", "&ldquo;"), ("”", "&rdquo;"), ('"', "&quot;"), ("…", "&hellip;"), ("—", "&mdash;"), ("'", "&#39;"),
)
INVISIBLE = ("\u200b", "\ufeff", "\u00ad", "\u2060", "\u0007", "\u200e", "\u0001", "\u202c")
EMOJI = ("😀", "👍", "🔥", "🎉", "❤️", "🌸", "😂", "✨", "🙏", "👏")
PERSONAL = {
    "e-mail": {
        "zh": "有问题可以写信到 {value} ，会尽快回复。",
        "en": "Questions can be sent to {value} at any time.",
    },
    "mobile": {
        "zh": "也可以打电话 {value} 找值班的同事。",
        "en": "The person on duty answers at {value} during the day.",
    },
    "public-ip": {
        "zh": "测试用的机器地址是 {value} ，晚上会关机。",
        "en": "The test machine is reachable at {value} until midnight.",
    },
    "resident-id": {
        "zh": "报名表上填写的身份证号是 {value} 。",
        "en": "The resident identity number on the form is {value} here.",
    },
}
UPDATED = {
    "zh": "本页更新于{year}年{month}月{day}日。",
    "en": "This page was last updated on {year}-{month}-{day}.",
}
TRACKING = (
    "utm_source=feed&utm_medium=rss", "utm_campaign=spring&utm_source=mail", "spm=a2c4e.{small}.0.0",
    "fbclid=IwAR{handle}", "gclid={handle}{number}", "from=timeline&share_token={handle}",
)
STUBS = {
    "zh": ("页面不存在，请返回首页。", "内容已删除。", "加载中……", "暂无数据", "请登录后查看全部内容。"),
    "en": (
        "Page not found.", "Content unavailable.", "Loading…", "No results.", "Please log in to continue.",
    ),
}
KEYWORDS = {
    "zh": (
        "价格", "批发", "厂家", "图片", "品牌", "排行榜", "哪家好", "加盟", "代理", "招聘", "团购", "优惠", "附近",
        "电话", "地址", "官网", "下载", "破解版", "免费", "在线观看", "高清", "最新", "大全", "教程", "查询",
        "二手", "出租", "装修", "酒店", "机票",
    ),
    "en": (
        "cheap", "best", "buy", "online", "free", "download", "review", "price", "discount", "near me",
        "wholesale", "coupon", "login", "official", "crack", "serial", "torrent", "hd", "watch", "full", "jobs",
        "hotel", "flight", "rent", "used", "parts", "sale",
    ),
}
LOREM = (
    "lorem", "ipsum", "dolor", "sit", "amet", "consectetur", "adipiscing", "elit", "sed", "eiusmod", "tempor",
    "incididunt", "labore", "dolore", "magna", "aliqua", "enim", "minim", "veniam", "quis", "nostrud", "ullamco",
    "laboris", "nisi", "aliquip", "commodo",
)
FOREIGN = {
    "de": (
        "Der alte Bahnhof am Rand der Stadt wurde im Frühjahr neu gestrichen.",
        "Jeden Samstag verkaufen die Bauern dort Äpfel, Kartoffeln und frisches Brot.",
        "Meine Großmutter fährt mit dem Fahrrad hin, obwohl der Weg ziemlich steil ist.",
        "Im Winter liegt der Schnee manchmal so hoch, dass die Züge stehen bleiben.",
        "Die Kinder bauen dann hinter dem Gebäude eine lange Rutschbahn.",
        "Niemand weiß genau, wann die große Uhr zum letzten Mal richtig ging.",
        "Der neue Bürgermeister hat versprochen, sie bis zum Sommer zu reparieren.",
        "Abends trifft man sich im kleinen Café und spricht über das Wetter.",
    ),
    "ru": (
        "Старая мельница стоит на берегу реки уже больше ста лет.",
        "Летом сюда приезжают художники и рисуют воду, лодки и высокие тополя.",
        "Мой дед рассказывал, что раньше муку возили отсюда в соседний город.",
        "Теперь в здании открыли небольшой музей с инструментами и фотографиями.",
        "По вечерам сторож пьёт чай у окна и слушает радио.",
        "Зимой река замерзает, и дети катаются на коньках до самого моста.",
        "Весной вода поднимается высоко, и дорогу приходится закрывать на несколько дней.",
        "Никто из местных не хочет уезжать отсюда навсегда.",
    ),
    "ja": (
        "駅前の小さな本屋は、朝の七時から店を開けています。",
        "店主のおじいさんは、毎日ほうきで入り口をていねいに掃いています。",
        "学校へ行く子どもたちは、そこで漫画の新しい号が出たかどうかを確かめます。",
        "雨の日には、傘を持っていない人に古い傘を貸してくれます。",
        "わたしも中学生のころ、よくその店で宿題をしていました。",
        "となりのパン屋から、焼きたてのにおいがただよってきます。",
        "夏になると、店の前に風鈴がいくつもつるされます。", "いつまでもこの町に残っていてほしいと思います。",
    ),
    "fr": (
        "La petite boulangerie du village ouvre avant le lever du soleil.",
        "Le boulanger connaît chaque client et se souvient de ses habitudes.",
        "En été, les touristes s'arrêtent pour acheter des tartes aux abricots.",
        "La rivière passe juste derrière la maison et fait tourner une vieille roue.",
        "Les enfants pêchent depuis le pont quand l'école est finie.",
        "Le facteur arrive toujours à midi, même quand il pleut très fort.",
        "On raconte qu'un trésor est caché sous les pierres de la place.",
        "Personne ne l'a jamais cherché, car tout le monde préfère la légende.",
    ),
    "es": (
        "El mercado del puerto empieza a llenarse cuando vuelven los barcos.",
        "Las vendedoras gritan los precios y limpian el pescado con mucha rapidez.",
        "Mi tío compra siempre sardinas y las asa en el patio de su casa.",
        "Por la tarde, los músicos tocan canciones antiguas junto a la fuente.",
        "En otoño llueve tanto que las calles parecen pequeños arroyos.",
        "El farero baja una vez por semana a buscar cartas y periódicos.",
        "Todos esperan la fiesta de septiembre para encender las hogueras.",
        "Después el pueblo queda en silencio hasta la primavera.",
    ),
}

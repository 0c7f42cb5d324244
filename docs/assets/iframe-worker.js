/* Search without a server: a browser starts no worker for a page that was opened as a file, so its script runs in a
   hidden frame instead. */
if (location.protocol === "file:")
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.appendChild(this.frame)
      this.inside = this.frame.contentWindow
      window.addEventListener("message", (event) => {
        if (event.source !== this.inside) return
        this.dispatchEvent(new MessageEvent("message", { data: event.data }))
        this.onmessage?.(event)
      })
      this.ready = new Promise((resolve) => this.frame.addEventListener("load", resolve))
      this.inside.document.open()
      this.inside.document.write(`<!DOCTYPE html><html><body><script>
        postMessage = (data) => parent.dispatchEvent(new MessageEvent("message", { source: window, data }))
        importScripts = (...urls) => urls.reduce((before, url) => before.then(() => new Promise((resolve) => {
          const script = document.createElement("script")
          script.src = url
          script.addEventListener("load", resolve)
          document.body.appendChild(script)
        })), Promise.resolve())
      <\/script><script src="${url}"><\/script></body></html>`)
      this.inside.document.close()
    }
    postMessage(data) {
      this.ready.then(() => this.inside.dispatchEvent(new MessageEvent("message", { data: structuredClone(data) })))
    }
    terminate() {
      this.frame.remove()
    }
  }

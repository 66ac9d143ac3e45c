package objectstest

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"testing"
)

// Proxy forwards requests to a real object store and injects faults into later requests; Break also affects running ones.
type Proxy struct {
	server *httptest.Server

	mu       sync.Mutex
	requests int
	broken   bool
	hang     chan struct{} // closed by Mend; nil when not hanging
	fail     *int64        // bytes of request bodies until it breaks
	corrupt  *int64        // bytes until it flips a bit
	reply    func(*http.Response) error
}

// NewProxy starts a proxy in front of the endpoint (http://host:port). It ends with the test.
func NewProxy(t testing.TB, endpoint string) *Proxy {
	t.Helper()
	target, err := url.Parse(endpoint)
	if err != nil {
		t.Fatalf("proxy: %v", err)
	}
	transport := &http.Transport{DisableCompression: true}
	p := &Proxy{}
	forward := &httputil.ReverseProxy{
		Transport: transport,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host // it is signed
		},
		ModifyResponse: func(reply *http.Response) error {
			p.mu.Lock()
			change := p.reply
			p.mu.Unlock()
			if change == nil {
				return nil
			}
			return change(reply)
		},
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
		ErrorLog:     log.New(io.Discard, "", 0),
	}
	p.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hang := p.admit()
		if hang != nil {
			select {
			case <-hang:
			case <-r.Context().Done():
			}
			panic(http.ErrAbortHandler)
		}
		if r.ContentLength != 0 {
			r.Body = &body{ReadCloser: r.Body, proxy: p}
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		p.Mend()
		p.server.CloseClientConnections()
		p.server.Close()
		transport.CloseIdleConnections()
	})
	return p
}

// admit counts a request, aborts it when the proxy is broken, and returns the channel to wait for, if any.
func (p *Proxy) admit() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests++
	if p.broken {
		panic(http.ErrAbortHandler) // closes the connection without a response
	}
	return p.hang
}

// Endpoint returns the proxy's URL: http://127.0.0.1:port.
func (p *Proxy) Endpoint() string { return p.server.URL }

// Requests returns the number of requests so far, forwarded or not.
func (p *Proxy) Requests() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.requests
}

// Break drops every connection, including those with a running request, until Mend.
func (p *Proxy) Break() {
	p.mu.Lock()
	p.broken = true
	p.mu.Unlock()
	p.server.CloseClientConnections()
}

// FailAfter breaks the proxy after n more bytes of request bodies.
func (p *Proxy) FailAfter(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fail = &n
}

// CorruptAfter flips one bit in the request bodies after n more bytes.
func (p *Proxy) CorruptAfter(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.corrupt = &n
}

// Hang accepts requests and does not respond. Mend closes their connections.
func (p *Proxy) Hang() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.hang == nil {
		p.hang = make(chan struct{})
	}
}

// OnReply calls change with every reply of the store (reply.Request is its request). change may modify it. After an error
// the client gets a closed connection instead of the reply. change is called from several goroutines.
func (p *Proxy) OnReply(change func(reply *http.Response) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reply = change
}

// Mend ends every fault.
func (p *Proxy) Mend() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.broken, p.fail, p.corrupt, p.reply = false, nil, nil, nil
	if p.hang != nil {
		close(p.hang)
		p.hang = nil
	}
}

// body counts the bytes of a request body.
type body struct {
	io.ReadCloser
	proxy *Proxy
}

func (b *body) Read(buffer []byte) (int, error) {
	n, err := b.ReadCloser.Read(buffer)
	if b.proxy.pass(buffer[:n]) {
		return 0, io.ErrUnexpectedEOF
	}
	return n, err
}

// pass forwards bytes and reports whether the proxy has just broken.
func (p *Proxy) pass(bytes []byte) (broken bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	passed := int64(len(bytes))
	if p.corrupt != nil {
		if *p.corrupt < passed {
			bytes[*p.corrupt] ^= 1
			p.corrupt = nil
		} else {
			*p.corrupt -= passed
		}
	}
	if p.fail != nil {
		if *p.fail < passed {
			p.broken, p.fail = true, nil
		} else {
			*p.fail -= passed
		}
	}
	return p.broken
}

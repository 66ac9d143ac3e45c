package objectstest

import (
	"fmt"
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
	server    *httptest.Server
	transport *http.Transport

	mu       sync.Mutex
	requests int
	broken   bool
	hang     chan struct{} // closed by Mend; nil when not hanging
	fail     *int64        // bytes of request bodies until it breaks
	corrupt  *int64        // bytes until it flips a bit
	request  func(*http.Request) (status int, body string)
	reply    func(*http.Response) error
}

// NewProxy starts a proxy in front of the endpoint (http://host:port). It ends with the test.
func NewProxy(t testing.TB, endpoint string) *Proxy {
	t.Helper()
	p, err := Forward(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// Forward starts a proxy in front of the endpoint (http://host:port), without a test.
func Forward(endpoint string) (*Proxy, error) {
	target, err := url.Parse(endpoint)
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	p := &Proxy{transport: &http.Transport{DisableCompression: true}}
	forward := &httputil.ReverseProxy{
		Transport: p.transport,
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
		hang, refuse := p.admit()
		if hang != nil {
			select {
			case <-hang:
			case <-r.Context().Done():
			}
			panic(http.ErrAbortHandler)
		}
		if refuse != nil {
			if status, text := refuse(r); status != 0 {
				answer(w, r, status, text)
				return
			}
		}
		if r.ContentLength != 0 {
			r.Body = &body{ReadCloser: r.Body, proxy: p}
		}
		forward.ServeHTTP(w, r)
	}))
	return p, nil
}

// Close ends the proxy and its connections.
func (p *Proxy) Close() {
	p.Mend()
	p.server.CloseClientConnections()
	p.server.Close()
	p.transport.CloseIdleConnections()
}

// answer sends a reply in place of the store's.
func answer(w http.ResponseWriter, r *http.Request, status int, text string) {
	_, _ = io.Copy(io.Discard, r.Body) // a client may not read the reply before it has sent the body
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text) // the client may have gone
}

// admit counts a request and aborts it when the proxy is broken. It returns the channel to wait for and the function that
// may answer the request, if any.
func (p *Proxy) admit() (hang <-chan struct{}, refuse func(*http.Request) (int, string)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests++
	if p.broken {
		panic(http.ErrAbortHandler) // closes the connection without a response
	}
	return p.hang, p.request
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

// OnRequest calls decide with every request before it is forwarded. With a status other than 0 the client gets this status
// and body (XML) and the store gets nothing. decide is called from several goroutines and may not read the request's body.
func (p *Proxy) OnRequest(decide func(request *http.Request) (status int, body string)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.request = decide
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
	p.broken, p.fail, p.corrupt, p.request, p.reply = false, nil, nil, nil, nil
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

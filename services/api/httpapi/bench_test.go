package httpapi_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/platform/httpserver"
	"github.com/sluice-fhir/sluice/services/api/httpapi"
)

// large returns a file of so many MiB of text that compresses to about a ninth.
func large(mib int) content {
	c := content{typ: "Observation"}
	filler := strings.Repeat(`{"system":"http://loinc.org","code":"8302-2","display":"Body height"},`, 12)
	for i := 0; len(c.lines)*(len(filler)+120) < mib<<20; i++ {
		c.lines = append(c.lines, fmt.Sprintf(
			`{"resourceType":"Observation","id":"made-up-%d","code":{"coding":[%s{}]},"valueQuantity":{"value":%d.%d}}`,
			i*2654435761, filler, i*40503%997, i*7919%101))
	}
	return c
}

// served returns a fixture with one large file, and the path of the file.
func benchFile(b *testing.B, mib int, older bool) (*fixture, string, int) {
	b.Helper()
	w := newFixture(b, func(cfg *httpapi.Config) { cfg.DownloadLimit = 1 << 20 })
	id := w.kickoff(w.as("alice"), "")
	w.plan(id, "Observation")
	whole := large(mib)
	parts := []content{whole}
	if older { // in two members, as earlier versions could write; the second has nearly everything
		first, second := whole, whole
		first.lines, second.lines = whole.lines[:1], whole.lines[1:]
		parts = []content{first, second}
	}
	file := w.write(id, "Observation-00000", parts...)
	w.commit(w.claim(id, "Observation-00000", export.KindExport), file)
	w.seal(id, nil)
	return w, filePath(id, file), int(file.Bytes)
}

// BenchmarkOneByte reads the last byte of the text: one request, and 100 at once.
func BenchmarkOneByte(b *testing.B) {
	for _, older := range []bool{false, true} {
		w, path, size := benchFile(b, 128, older)
		last := append(w.as("alice"), "Range", "bytes="+strconv.Itoa(size-1)+"-")
		name := map[bool]string{false: "indexed", true: "older"}[older]
		b.Run(name+"/1", func(b *testing.B) {
			for b.Loop() {
				if got := w.ask("GET", path, last...); got.code != http.StatusPartialContent {
					b.Fatal(got.code)
				}
			}
		})
		b.Run(name+"/100", func(b *testing.B) {
			for b.Loop() {
				var all sync.WaitGroup
				for range 100 {
					all.Go(func() { _, _ = w.try("GET", path, last...) })
				}
				all.Wait()
			}
		})
	}
}

// BenchmarkDownload reads the whole file.
func BenchmarkDownload(b *testing.B) {
	w, path, size := benchFile(b, 128, false)
	for _, coding := range []string{"gzip", "identity"} {
		b.Run(coding, func(b *testing.B) {
			headers := append(w.as("alice"), "Accept-Encoding", coding)
			b.SetBytes(int64(size))
			for b.Loop() {
				response, err := w.open("GET", path, headers...)
				if err != nil {
					b.Fatal(err)
				}
				_, err = io.Copy(io.Discard, response.Body)
				if err := errors.Join(err, response.Body.Close()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// buffers are the parts of a socket's memory that ss reports: received and not read, sent and not acknowledged, queued.
var buffers = regexp.MustCompile(`skmem:\(r(\d+),.*?,t(\d+),.*?,w(\d+),`)

// tcpMemory returns the kernel's memory for the sockets of this process.
func tcpMemory(b *testing.B) (bytes int) {
	b.Helper()
	text, err := exec.CommandContext(b.Context(), "ss", "-tmnpO").Output()
	if err != nil {
		b.Skip("ss (iproute2) is needed: ", err)
	}
	for line := range strings.Lines(string(text)) {
		if found := buffers.FindStringSubmatch(line); found != nil && strings.Contains(line, fmt.Sprintf("pid=%d,", os.Getpid())) {
			for _, part := range found[1:] {
				n, _ := strconv.Atoi(part)
				bytes += n
			}
		}
	}
	return bytes
}

// BenchmarkSlowReaders opens 400 downloads that nobody reads, as a public listener has them, and reports what they hold.
func BenchmarkSlowReaders(b *testing.B) {
	const readers = 400
	w, path, _ := benchFile(b, 256, false)
	place := w.place
	store, err := objects.Open(objects.Config{ // not through the fixture's proxy
		Endpoint: place.Endpoint, AccessKey: place.AccessKey, SecretKey: place.SecretKey, Bucket: place.Bucket,
	})
	if err != nil {
		b.Fatal(err)
	}
	deps := w.deps
	deps.Objects, deps.Registry = store, prometheus.NewRegistry()
	handler, err := httpapi.New(w.config(func(cfg *httpapi.Config) { cfg.DownloadLimit = readers }), deps)
	if err != nil {
		b.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go func() { _ = httpserver.Serve(b.Context(), listener, handler, httpserver.Options{}) }()
	for b.Loop() {
		runtime.GC()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		kernel := tcpMemory(b)
		var held []net.Conn
		for range readers {
			conn, err := net.Dial("tcp", listener.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			_ = conn.(*net.TCPConn).SetReadBuffer(4096)
			if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: h\r\nAuthorization: %s\r\nAccept-Encoding: gzip\r\n\r\n",
				path, w.as("alice")[1]); err != nil {
				b.Fatal(err)
			}
			held = append(held, conn)
		}
		for last := -1; ; time.Sleep(500 * time.Millisecond) { // until the buffers are full
			now := tcpMemory(b)
			if now <= last {
				break
			}
			last = now
		}
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapInuse+after.StackInuse-before.HeapInuse-before.StackInuse)/readers/1024, "KiB/reader")
		b.ReportMetric(float64(tcpMemory(b)-kernel)/readers/1024, "kernel-KiB/reader")
		for _, conn := range held {
			_ = conn.Close()
		}
	}
}

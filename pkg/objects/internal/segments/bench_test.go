package segments_test

import (
	"crypto/sha256"
	"hash/crc32"
	"io"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/objects/internal/segments"
)

// sums computes the checksums that a store's writer computes for every byte, encrypted or not.
type sums struct {
	crc uint32
	sha interface{ Write([]byte) (int, error) }
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (s *sums) Write(p []byte) (int, error) {
	s.crc = crc32.Update(s.crc, castagnoli, p)
	return s.sha.Write(p)
}

// BenchmarkWrite measures the cost of encryption in addition to these checksums. "x" is the time with encryption divided by
// the time without, from one run.
func BenchmarkWrite(b *testing.B) {
	plain := random(16 << 20)
	b.SetBytes(int64(len(plain)))
	var without, with time.Duration
	for b.Loop() {
		began := time.Now()
		send(b, &sums{sha: sha256.New()}, plain)
		without += time.Since(began)

		began = time.Now()
		w, err := segments.NewWriter(&sums{sha: sha256.New()}, dataKey, name)
		if err != nil {
			b.Fatal(err)
		}
		send(b, w, plain)
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
		with += time.Since(began)
	}
	b.ReportMetric(with.Seconds()/without.Seconds(), "x")
	b.ReportMetric((with-without).Seconds()*1e9/float64(b.N)/float64(len(plain)>>20), "ns/MiB")
}

func send(b *testing.B, to io.Writer, plain []byte) {
	b.Helper()
	for len(plain) > 0 {
		n := min(len(plain), 32<<10) // as gzip writes
		if _, err := to.Write(plain[:n]); err != nil {
			b.Fatal(err)
		}
		plain = plain[n:]
	}
}

package audit

import (
	"bytes"
	"testing"
)

// BenchmarkRecord shows events per second: one caller after the other, and many at once.
func BenchmarkRecord(b *testing.B) {
	for _, mode := range []struct {
		name    string
		durable bool
	}{{"written", false}, {"synced", true}} {
		cfg := config("")
		cfg.Sync = mode.durable
		b.Run(mode.name+"/one", func(b *testing.B) {
			cfg.Path = logFile(b)
			l := mustOpen(b, cfg, openHandle)
			for b.Loop() {
				mustRecord(b, l, download())
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
		b.Run(mode.name+"/many", func(b *testing.B) {
			cfg.Path = logFile(b)
			l := mustOpen(b, cfg, openHandle)
			b.SetParallelism(64)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := l.Record(download()); err != nil {
						b.Error(err)
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// BenchmarkVerify shows lines per second and what is allocated for one.
func BenchmarkVerify(b *testing.B) {
	path := logFile(b)
	l := mustOpen(b, config(path), openHandle)
	for range 1000 {
		mustRecord(b, l, download())
	}
	mustClose(b, l)
	text := content(b, path)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		report, err := Verify(Proof{Key: testKey}, Input{"log", bytes.NewReader(text)})
		if err != nil || report.Problem != nil {
			b.Fatal(err, report.Problem)
		}
	}
	b.ReportMetric(1002*float64(b.N)/b.Elapsed().Seconds(), "lines/s")
}

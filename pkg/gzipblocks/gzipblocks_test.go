package gzipblocks_test

import (
	"bytes"
	stdgzip "compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"

	"github.com/sluice-fhir/sluice/pkg/gzipblocks"
)

const block = gzipblocks.BlockSize

// text returns bytes that compress like NDJSON, and refer to earlier ones.
func text(size int) []byte {
	random := rand.New(rand.NewPCG(1, uint64(size)))
	var all bytes.Buffer
	for all.Len() < size {
		all.WriteString(`{"resourceType":"Observation","id":"made-up-`)
		for range 8 {
			all.WriteByte(byte('a' + random.IntN(26)))
		}
		all.WriteString(`","status":"final","subject":{"reference":"Patient/made-up"}}` + "\n")
	}
	return all.Bytes()[:size]
}

func pack(t testing.TB, w *gzipblocks.Writer, text []byte, piece int) (stored []byte, index string) {
	t.Helper()
	var to bytes.Buffer
	if err := w.Reset(&to); err != nil {
		t.Fatal(err)
	}
	for rest := text; len(rest) > 0; {
		n := min(piece, len(rest))
		if written, err := w.Write(rest[:n]); err != nil || written != n {
			t.Fatalf("wrote %d of %d: %v", written, n, err)
		}
		rest = rest[n:]
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return to.Bytes(), w.Index()
}

// Every reader of gzip reads the stream: it is one member without anything behind it.
func TestAStreamIsOneMember(t *testing.T) {
	var w gzipblocks.Writer
	for _, size := range []int{0, 1, block - 1, block, block + 1, 3*block + 12345} {
		for _, piece := range []int{700, block, 5 * block} {
			want := text(size)
			stored, index := pack(t, &w, want, piece)
			if (len(index) > 0) != (size > block) {
				t.Errorf("%d bytes: an index of %d bytes", size, len(index))
			}
			source := bytes.NewReader(stored)
			one, err := stdgzip.NewReader(source)
			if err != nil {
				t.Fatal(err)
			}
			one.Multistream(false)
			got, err := io.ReadAll(one)
			if err != nil || !bytes.Equal(got, want) || source.Len() != 0 {
				t.Errorf("%d bytes: read %d, %v, %d bytes behind it", size, len(got), err, source.Len())
			}
			other, err := gzip.NewReader(bytes.NewReader(stored))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(other); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes: the library reads %d, %v", size, len(got), err)
			}
		}
	}
}

// A part is read from its own blocks, wherever it is.
func TestAPartCostsItsBlocks(t *testing.T) {
	var w gzipblocks.Writer
	const size = 5*block + 77
	want := text(size)
	stored, index := pack(t, &w, want, 4096)
	if len(index) > 6*6 {
		t.Errorf("an index of %d bytes for 6 blocks", len(index))
	}
	random := rand.New(rand.NewPCG(3, 4))
	parts := [][2]int{
		{0, 1}, {0, size}, {size - 1, 1}, {block - 1, 1}, {block, 1}, {block - 1, 2}, {5 * block, 77}, {block, 4 * block}, {0, block},
	}
	for range 200 {
		start := random.IntN(size)
		parts = append(parts, [2]int{start, 1 + random.IntN(min(size-start, 3*block))})
	}
	for _, part := range parts {
		place, err := gzipblocks.Find(index, int64(part[0]), int64(part[1]), int64(len(stored)))
		if err != nil {
			t.Fatalf("part %v: %v", part, err)
		}
		if place.Skip >= block || place.Offset+place.Length > int64(len(stored)) {
			t.Errorf("part %v: place %+v", part, place)
		}
		blocks := int64((part[0]+part[1]-1)/block - part[0]/block + 1)
		if most := blocks * int64(len(stored)) / 4; place.Length > most {
			t.Errorf("part %v reads %d bytes of %d blocks, want at most %d", part, place.Length, blocks, most)
		}
		plain := gzipblocks.NewReader(bytes.NewReader(stored[place.Offset : place.Offset+place.Length]))
		if _, err := io.CopyN(io.Discard, plain, place.Skip); err != nil {
			t.Fatalf("part %v: %v", part, err)
		}
		got := make([]byte, part[1])
		if _, err := io.ReadFull(plain, got); err != nil || !bytes.Equal(got, want[part[0]:part[0]+part[1]]) {
			t.Errorf("part %v: another text, %v", part, err)
		}
	}
}

func TestFindRefuses(t *testing.T) {
	var w gzipblocks.Writer
	stored, index := pack(t, &w, text(3*block), block)
	for name, call := range map[string]func() (gzipblocks.Place, error){
		"no index":          func() (gzipblocks.Place, error) { return gzipblocks.Find("", 0, 1, 100) },
		"behind the end":    func() (gzipblocks.Place, error) { return gzipblocks.Find(index, 3*block, 1, int64(len(stored))) },
		"a shorter stream":  func() (gzipblocks.Place, error) { return gzipblocks.Find(index, 0, 1, 20) },
		"a shorter one":     func() (gzipblocks.Place, error) { return gzipblocks.Find(index, 2*block, 1, 20) },
		"half a number":     func() (gzipblocks.Place, error) { return gzipblocks.Find("gA", 0, 1, 100) },
		"half a size":       func() (gzipblocks.Place, error) { return gzipblocks.Find("AYA", 0, 1, 100) },
		"blocks of nothing": func() (gzipblocks.Place, error) { return gzipblocks.Find("AA", 0, 1, 100) },
		"nothing":           func() (gzipblocks.Place, error) { return gzipblocks.Find(index, 0, 0, int64(len(stored))) },
	} {
		if place, err := call(); err == nil {
			t.Errorf("%s: %+v", name, place)
		}
	}
}

// failing fails after some bytes.
type failing struct{ left int }

func (f *failing) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, errors.New("full")
	}
	return len(p), nil
}

func TestWriteErrorsAreReturned(t *testing.T) {
	want := strings.Repeat("x", 3*block)
	for left := range 40 {
		var w gzipblocks.Writer
		err := w.Reset(&failing{left: left})
		if err == nil {
			_, err = io.WriteString(&w, want)
		}
		if closeErr := w.Close(); err == nil && closeErr == nil {
			t.Errorf("no error after %d bytes", left)
		}
	}
}

func FuzzFind(f *testing.F) {
	var w gzipblocks.Writer
	stored, index := pack(f, &w, text(3*block), block)
	f.Add(index, int64(0), int64(1), int64(len(stored)))
	f.Add(index, int64(block), int64(block), int64(len(stored)))
	f.Fuzz(func(t *testing.T, index string, start, length, stored int64) {
		if start > 1<<50 || length > 1<<50 {
			t.Skip("longer than any file")
		}
		place, err := gzipblocks.Find(index, start, length, stored)
		if err == nil && (place.Offset < 0 || place.Length <= 0 || place.Offset+place.Length > stored || place.Skip < 0) {
			t.Errorf("%+v of %d bytes", place, stored)
		}
	})
}

// The stream of a text depends on the text alone, and is that of the named encoder: a client proves with it that its text is
// the one whose gzip form was signed. If the digests change, give Encoder a new name.
func TestStreamsOfThisEncoder(t *testing.T) {
	want := map[int]string{
		0:               "458c5a203299dd326aa747fee1bbc7709bfbd560507d1603459d9f7d9eb6be76",
		64<<10 - 1:      "3a90fdc9c13f3aab8d2b13f8dfe9696fe694947ae6a7e8f7104d105cf8517193",
		3*block + 12345: "048fb3fc451fe2f1630bd5ddea1a2baf921d01f1f45798422a9f7106267bd128",
	}
	if gzipblocks.Encoder != "sluice-gzip-1" {
		t.Error("the digests below are those of another encoder")
	}
	var used gzipblocks.Writer
	for size, digest := range want {
		for _, piece := range []int{700, block + 1, 5 * block} {
			for _, w := range []*gzipblocks.Writer{{}, &used} {
				stored, _ := pack(t, w, text(size), piece)
				if got := fmt.Sprintf("%x", sha256.Sum256(stored)); got != digest {
					t.Errorf("%d bytes in pieces of %d: %s, want %s", size, piece, got, digest)
				}
				pack(t, &used, text(12345), piece) // leaves something in its tables
			}
		}
	}
}

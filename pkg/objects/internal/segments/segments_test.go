package segments_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/objects/internal/segments"
)

const (
	name   = "jobs/a/Patient/1.ndjson.gz"
	sealed = segments.Size + 16 // bytes of a full segment as it is stored
)

var dataKey = bytes.Repeat([]byte{7}, segments.KeySize)

// sizes has the boundary sizes of the format.
var sizes = []int{0, 1, 100, segments.Size - 1, segments.Size, segments.Size + 1, 2 * segments.Size, 3*segments.Size + 5}

func TestWhatIsEncryptedDecrypts(t *testing.T) {
	for _, size := range sizes {
		plain := random(size)
		stored := encrypt(t, plain, 1<<15+3)
		if want := segments.StoredSize(int64(size)); int64(len(stored)) != want {
			t.Errorf("%d bytes: %d are stored, want %d", size, len(stored), want)
		}
		if size > 16 && bytes.Contains(stored, plain[:16]) {
			t.Errorf("%d bytes: plaintext is stored", size)
		}
		got, err := decrypt(stored, dataKey, name, 0, int64(size))
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes: read %d bytes, which differ, or error %v", size, len(got), err)
		}
	}
}

func TestRangesReadTheirSegmentsAlone(t *testing.T) {
	plain := random(3*segments.Size + 5)
	stored := encrypt(t, plain, len(plain))
	for _, test := range []struct{ offset, length int }{
		{0, 1},
		{0, segments.Size},
		{segments.Size - 1, 2},
		{segments.Size, 1},
		{segments.Size + 10, 2*segments.Size - 20},
		{3 * segments.Size, 5},
		{3*segments.Size + 4, 1},
		{10, 3*segments.Size - 8},
		{3*segments.Size + 5, 0},
		{segments.Size, 0},
	} {
		object, err := segments.Open(stored[:segments.HeaderSize], dataKey, name, int64(len(stored)))
		if err != nil {
			t.Fatal(err)
		}
		from, to := object.StoredRange(int64(test.offset), int64(test.length))
		// Damage the bytes outside of StoredRange: they must not be needed.
		damaged := bytes.Repeat([]byte{0xff}, len(stored))
		copy(damaged, stored[:segments.HeaderSize])
		copy(damaged[from:to], stored[from:to])
		if whole := (test.length+test.offset%segments.Size)/segments.Size + 2; to-from > int64(whole)*sealed {
			t.Errorf("[%d, +%d] reads %d stored bytes", test.offset, test.length, to-from)
		}
		got, err := decrypt(damaged, dataKey, name, int64(test.offset), int64(test.length))
		if err != nil || !bytes.Equal(got, plain[test.offset:test.offset+test.length]) {
			t.Errorf("[%d, +%d]: %d bytes, which differ, or error %v", test.offset, test.length, len(got), err)
		}
	}
}

// Equal objects have different stored bytes: a reader of the bucket cannot detect that they are equal.
func TestTwoObjectsOfTheSameBytesDiffer(t *testing.T) {
	plain := random(1000)
	one, other := encrypt(t, plain, 1000), encrypt(t, plain, 1000)
	if bytes.Equal(one[8:40], other[8:40]) || bytes.Equal(one[40:], other[40:]) {
		t.Error("two encryptions of the same bytes have equal parts")
	}
}

// TestEveryByteCounts flips a bit in each byte of a short object, and in some of each part of a longer one.
func TestEveryByteCounts(t *testing.T) {
	for _, size := range []int{0, 100, 2*segments.Size + 7} {
		plain := random(size)
		stored := encrypt(t, plain, max(size, 1))
		step := 1
		if size > 1000 {
			step = 997
		}
		for at := 0; at < len(stored); at += step {
			stored[at] ^= 1 << (at % 8)
			got, err := decrypt(stored, dataKey, name, 0, int64(size))
			stored[at] ^= 1 << (at % 8)
			if err == nil {
				t.Fatalf("%d bytes: byte %d was changed: no error", size, at)
			}
			if !bytes.HasPrefix(plain, got) {
				t.Fatalf("%d bytes: byte %d was changed: bytes that were not written", size, at)
			}
		}
	}
}

func TestWhatIsNotWhatWasWrittenIsRefused(t *testing.T) {
	plain := random(3*segments.Size + 5)
	stored := encrypt(t, plain, len(plain))
	even := encrypt(t, plain[:3*segments.Size], len(plain)) // ends with a full segment
	header, first := stored[:segments.HeaderSize], stored[segments.HeaderSize:][:sealed]
	second, third, last := stored[segments.HeaderSize+sealed:][:sealed], stored[segments.HeaderSize+2*sealed:][:sealed],
		stored[segments.HeaderSize+3*sealed:]
	join := func(parts ...[]byte) []byte { return slices.Concat(parts...) }
	for what, test := range map[string]struct {
		stored []byte
		key    []byte
		name   string
	}{
		"two segments are swapped":          {join(header, second, first, third, last), dataKey, name},
		"a segment comes twice":             {join(header, first, first, second, third, last), dataKey, name},
		"a segment is missing":              {join(header, first, third, last), dataKey, name},
		"the first segment is missing":      {join(header, second, third, last), dataKey, name},
		"the last segment is missing":       {join(header, first, second, third), dataKey, name},
		"all but one are missing":           {join(header, first), dataKey, name},
		"all are missing":                   {header, dataKey, name},
		"the header is missing":             {join(first, second, third, last), dataKey, name},
		"nothing is there":                  {nil, dataKey, name},
		"a byte is missing":                 {stored[:len(stored)-1], dataKey, name},
		"only a tag is left of the last":    {stored[:len(stored)-5], dataKey, name},
		"less than a tag is left of it":     {stored[:len(stored)-6], dataKey, name},
		"a byte is behind the end":          {join(stored, []byte{0}), dataKey, name},
		"the last segment comes twice":      {join(stored, last), dataKey, name},
		"another object's end is behind it": {join(even, last), dataKey, name},
		"a full object's last is missing":   {even[:len(even)-sealed], dataKey, name},
		"an empty end is put behind it":     {join(even, even[len(even)-16:]), dataKey, name},
		"the header is another object's":    {join(even[:segments.HeaderSize], first, second, third, last), dataKey, name},
		"it lies under another name":        {stored, dataKey, name + "x"},
		"it is read with another key":       {stored, bytes.Repeat([]byte{8}, segments.KeySize), name},
		"it is in plaintext":                {plain, dataKey, name},
	} {
		length := int64(len(plain))
		got, err := decrypt(test.stored, test.key, test.name, 0, length)
		if err == nil {
			t.Errorf("%s: no error", what)
		}
		if !bytes.HasPrefix(plain, got) {
			t.Errorf("%s: bytes that were not written", what)
		}
	}
}

// A range after the end is empty, but only after the end was authenticated.
func TestBehindTheEnd(t *testing.T) {
	for _, size := range sizes {
		stored := encrypt(t, random(size), 1<<15)
		for _, offset := range []int{size, size + 1, size + 5*segments.Size} {
			if got, err := decrypt(stored, dataKey, name, int64(offset), 10); err != nil || len(got) > 0 {
				t.Errorf("%d bytes, from %d on: %d bytes, %v", size, offset, len(got), err)
			}
			if size < segments.Size {
				continue
			}
			cut := stored[:segments.HeaderSize+sealed]
			if size == segments.Size {
				cut = stored[:len(stored)-1]
			}
			if _, err := decrypt(cut, dataKey, name, int64(offset), 10); err == nil {
				t.Errorf("%d bytes, truncated, from %d on: no error", size, offset)
			}
		}
	}
}

// A range before the cut can be read, because the end is not checked. A segment that is now the last one cannot.
func TestARangeOfACutObject(t *testing.T) {
	plain := random(3 * segments.Size)
	stored := encrypt(t, plain, len(plain))
	cut := stored[:segments.HeaderSize+2*sealed]
	if got, err := decrypt(cut, dataKey, name, 10, 20); err != nil || !bytes.Equal(got, plain[10:30]) {
		t.Errorf("a range before the cut: %d bytes, %v", len(got), err)
	}
	if _, err := decrypt(cut, dataKey, name, segments.Size, 20); err == nil {
		t.Error("a range in the segment that is now the last one: no error")
	}
}

func TestKeysOfAnotherSize(t *testing.T) {
	for _, size := range []int{0, 16, 31, 33} {
		if _, err := segments.NewWriter(io.Discard, make([]byte, size), name); err == nil {
			t.Errorf("a key of %d bytes encrypts", size)
		}
	}
}

// FuzzDecrypt: whatever replaces an object, only bytes that were written are returned.
func FuzzDecrypt(f *testing.F) {
	plain := random(segments.Size + 100)
	stored := encrypt(f, plain, len(plain))
	f.Add(stored, int64(0), int64(10))
	f.Add(stored[:len(stored)-1], int64(segments.Size), int64(100))
	f.Add(encrypt(f, nil, 1), int64(0), int64(0))
	f.Add([]byte("sluice\x01\x10"), int64(5), int64(5))
	f.Fuzz(func(t *testing.T, object []byte, offset, length int64) {
		got, err := decrypt(object, dataKey, name, max(offset, 0), max(length, 0))
		if err != nil || len(got) == 0 {
			return
		}
		// The object is authentic under this key, so it was written by this test.
		if from := max(offset, 0); from >= int64(len(plain)) || !bytes.HasPrefix(plain[from:], got) {
			t.Errorf("%d bytes that were not written", len(got))
		}
	})
}

// encrypt writes the bytes in pieces of atOnce bytes.
func encrypt(t testing.TB, plain []byte, atOnce int) []byte {
	t.Helper()
	var stored bytes.Buffer
	w, err := segments.NewWriter(&stored, dataKey, name)
	if err != nil {
		t.Fatal(err)
	}
	for chunk := range slices.Chunk(plain, atOnce) {
		if n, err := w.Write(chunk); n != len(chunk) || err != nil {
			t.Fatalf("Write: %d of %d, %v", n, len(chunk), err)
		}
	}
	if (w.Buffered() > 0) != (len(plain) > 0) {
		t.Fatalf("%d of %d bytes are buffered", w.Buffered(), len(plain))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return stored.Bytes()
}

// decrypt reads a range of the object. With an error it returns the bytes read before it.
func decrypt(stored, dataKey []byte, name string, offset, length int64) ([]byte, error) {
	object, err := segments.Open(stored[:min(segments.HeaderSize, len(stored))], dataKey, name, int64(len(stored)))
	if err != nil {
		return nil, err
	}
	if object.PlainSize() < 0 || segments.StoredSize(object.PlainSize()) != int64(len(stored)) {
		return nil, fmt.Errorf("a plaintext of %d bytes is stored in %d", object.PlainSize(), len(stored))
	}
	from, to := object.StoredRange(offset, length)
	return io.ReadAll(object.Reader(bytes.NewReader(stored[from:to]), offset, length))
}

func random(size int) []byte {
	plain := make([]byte, size)
	source := rand.NewChaCha8([32]byte{byte(size), byte(size >> 8)})
	_, _ = source.Read(plain) // never fails
	return plain
}

package spillset

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/objects/objectstest"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

const prefix = "jobs/j/_cohort/1/"

// open returns a store on an empty bucket, behind a fault proxy.
func open(t *testing.T) (*objects.Store, *objectstest.Proxy) {
	t.Helper()
	s3 := testenv.ObjectStore(t)
	proxy := objectstest.NewProxy(t, s3.Endpoint)
	store, err := objects.Open(objects.Config{
		Endpoint: proxy.Endpoint(), AccessKey: s3.AccessKey, SecretKey: s3.SecretKey, Bucket: s3.Bucket,
	})
	must(t, err)
	t.Cleanup(store.Close)
	must(t, store.EnsureBucket(t.Context()))
	return store, proxy
}

// tiny returns a builder that spills every n ids of one letter.
func tiny(store *objects.Store, n int) *Builder {
	b := NewBuilder(store, prefix)
	b.limit = n * 61
	return b
}

func each(t *testing.T, b *Builder) []string {
	t.Helper()
	var ids []string
	must(t, b.Each(t.Context(), func(id string) error { ids = append(ids, id); return nil }))
	return ids
}

func keys(t *testing.T, store *objects.Store) []string {
	t.Helper()
	var names []string
	must(t, store.List(t.Context(), prefix, func(o objects.Info) error {
		names = append(names, strings.TrimPrefix(o.Key, prefix))
		return nil
	}))
	return names
}

func TestASmallSetIsNeverWritten(t *testing.T) {
	store, _ := open(t)
	b := NewBuilder(store, prefix)
	for _, id := range []string{"c", "a", "b", "a"} {
		must(t, b.Add(t.Context(), id))
	}
	if got := each(t, b); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("got %v", got)
	}
	if !b.Has([]byte("a")) || b.Has([]byte("x")) {
		t.Error("Has returns a wrong result")
	}
	if left := keys(t, store); len(left) != 0 {
		t.Errorf("written: %v", left)
	}
}

func TestASetLargerThanTheLimitIsSpilledAndMerged(t *testing.T) {
	store, _ := open(t)
	b := tiny(store, 2)
	for _, id := range strings.Split("fabacadafgbe", "") {
		must(t, b.Add(t.Context(), id))
		if len(b.held) > 2 {
			t.Fatalf("%d ids are held", len(b.held))
		}
	}
	if got := each(t, b); strings.Join(got, "") != "abcdefg" {
		t.Errorf("got %v", got)
	}
	runs, err := b.Spill(t.Context())
	must(t, err)
	if len(runs) < 3 {
		t.Errorf("runs: %v", runs)
	}
	for i := range 2 { // it can be read again
		if got := each(t, b); strings.Join(got, "") != "abcdefg" {
			t.Errorf("read %d: got %v", i, got)
		}
	}
}

func TestMoreRunsThanFanInAreMergedInRounds(t *testing.T) {
	t.Parallel()
	store, _ := open(t)
	b := tiny(store, 1)
	want := map[string]bool{}
	const fanIn = 3
	for i := range fanIn*fanIn + 3 { // three rounds: the last has two runs
		id := string(rune('a' + i*7%26))
		want[id] = true
		must(t, b.Add(t.Context(), id))
	}
	runs, err := b.Spill(t.Context())
	must(t, err)
	if len(runs) != fanIn*fanIn+3 {
		t.Fatalf("%d runs", len(runs))
	}
	var got []string
	must(t, merge(t.Context(), store, prefix, Runs(runs), fanIn, func(id string) error { got = append(got, id); return nil }))
	if !slices.Equal(got, slices.Sorted(maps.Keys(want))) {
		t.Errorf("got %v", got)
	}
	merged := slices.DeleteFunc(keys(t, store), func(name string) bool { return !strings.HasPrefix(name, "merge-") })
	if len(merged) != fanIn+1+2 || !slices.Contains(merged, "merge-1-000001") {
		t.Errorf("merged: %v", merged)
	}
}

func TestNothingIsMergedFromNothing(t *testing.T) {
	store, _ := open(t)
	b := NewBuilder(store, prefix)
	runs, err := b.Spill(t.Context())
	if err != nil || len(runs) != 0 || len(each(t, b)) != 0 {
		t.Errorf("the runs of an empty builder are %v, %v", runs, err)
	}
	must(t, Merge(t.Context(), store, prefix, nil, func(string) error { return errors.New("an id from an empty set") }))
}

func TestMergeReturnsWhatFails(t *testing.T) {
	store, proxy := open(t)
	b := tiny(store, 1)
	const runs = 3
	for i := range runs {
		must(t, b.Add(t.Context(), fmt.Sprintf("%03d", i)))
	}
	ctx := t.Context()
	nothing := func(string) error { return nil }
	enough := errors.New("enough")
	if err := b.Each(ctx, func(string) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("the reader's error: %v", err)
	}
	missing := append(slices.Clone(b.runs), prefix+"run-999999")
	for _, fanIn := range []int{2, fanIn} { // in a first round and at the end
		err := merge(ctx, store, prefix, Runs(missing), fanIn, nothing)
		if !errors.Is(err, export.ErrNotFound) {
			t.Errorf("a missing run: %v", err)
		}
	}
	proxy.Break()
	if err := b.Each(ctx, nothing); !errors.Is(err, export.ErrUnavailable) {
		t.Errorf("merge without a store: %v", err)
	}
	if err := b.Add(ctx, "z"); !errors.Is(err, export.ErrUnavailable) {
		t.Errorf("spill without a store: %v", err)
	}
	proxy.Mend()
	if got := each(t, b); len(got) != runs+1 || got[len(got)-1] != "z" {
		t.Errorf("after the outage: %v", got)
	}
}

func TestAChangedRunIsRefused(t *testing.T) {
	store, _ := open(t)
	b := tiny(store, 1)
	for _, id := range []string{"a", "c"} {
		must(t, b.Add(t.Context(), id))
	}
	runs, err := b.Spill(t.Context())
	must(t, err)
	nothing := func(string) error { return nil }
	must(t, Merge(t.Context(), store, prefix, Runs(runs), nothing))
	for name, changed := range map[string]Run{
		"another run's key":      {{key: runs[1], sum: runPart(runs[0]).sum}},
		"a digest of other form": {runPart(runs[0][:len(runs[0])-1])},
	} {
		if err := Merge(t.Context(), store, prefix, []Run{changed}, nothing); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	_, err = writeLines(t.Context(), store, runs[0], idsOf([]string{"a", "b"}))
	must(t, err)
	if err := Merge(t.Context(), store, prefix, Runs(runs), nothing); err == nil {
		t.Error("a run with one more id was accepted")
	}
	bare := prefix + "run-000009"
	_, err = writeLines(t.Context(), store, bare, idsOf([]string{"z"}))
	must(t, err)
	if err := Merge(t.Context(), store, prefix, Runs([]string{bare}), nothing); err == nil {
		t.Error("a run without a digest was accepted")
	}
}

func TestALostAnswerToASpillLosesNoID(t *testing.T) { // pitfall 9
	store, proxy := open(t)
	b := tiny(store, 1)
	proxy.FailAfter(0)
	if err := b.Add(t.Context(), "a"); err == nil {
		t.Fatal("the spill succeeded")
	}
	proxy.Mend()
	must(t, b.Add(t.Context(), "b"))
	if got := each(t, b); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("got %v", got)
	}
}

func TestAgainstAPlainMap(t *testing.T) {
	store, _ := open(t)
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(seed, 1))
			ctx := t.Context()
			folder := fmt.Sprintf("%s%d/", prefix, seed)
			b := NewBuilder(store, folder)
			b.limit = 20_000 + random.IntN(100_000)
			want := map[string]bool{}
			for range random.IntN(5_000) {
				id := randomID(random)
				want[id] = true
				must(t, b.Add(ctx, id))
				if b.bytes >= b.limit {
					t.Fatalf("%d bytes held, the limit is %d", b.bytes, b.limit)
				}
			}
			written, err := Write(ctx, store, folder, func(yield func(string) error) error { return b.Each(ctx, yield) })
			must(t, err)
			list, err := NewCache().Open(ctx, store, folder, written.Digest)
			must(t, err)
			got, err := list.IDs(ctx, 0, written.Chunks)
			must(t, err)
			if !slices.Equal(got, slices.Sorted(maps.Keys(want))) || written.Count != int64(len(want)) ||
				written.Chunks != list.Chunks() {
				t.Fatalf("%d ids in %d chunks (%d read), want %d", written.Count, written.Chunks, len(got), len(want))
			}
			for range 500 {
				id := randomID(random)
				if there, err := list.Contains(ctx, id); err != nil || there != want[id] {
					t.Fatalf("contains %q: %v %v, want %v", id, there, err, want[id])
				}
			}
		})
	}
}

// randomID returns a short id, so that ids repeat and are close to each other.
func randomID(random *rand.Rand) string {
	const letters = "-.0Aa"
	id := make([]byte, 1+random.IntN(7))
	for i := range id {
		id[i] = letters[random.IntN(len(letters))]
	}
	return string(id)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

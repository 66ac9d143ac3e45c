package synth

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
)

const (
	defaultFileBytes = 1 << 30
	blockPatients    = 2       // patients generated between two writes: about 1 MB
	mostWorkers      = 8       // more do not help a single writer, and each costs the memory of a block
	keptBuffer       = 2 << 20 // a buffer that has grown larger than this is released
)

// Config configures Generate.
type Config struct {
	Patients int    // at least 1
	Seed     uint64 // chooses the population
	Dir      string // created when missing; must have no *.ndjson file
	// Groups is the number of payer-like groups of the population, 0 for the default of 8; at most 1000. With the
	// default, a group is exactly the patients whose Coverage names one payer.
	Groups int
	// MaxFileBytes is the size at which a type gets another file, 0 for 1 GiB. Only a file with a single line, such
	// as the group of all patients, can be larger.
	MaxFileBytes int64
	// Progress is called from one goroutine at a time with the number of patients written; it may be nil.
	Progress func(patientsDone int)
}

// Summary describes the generated population.
type Summary struct {
	Resources, Bytes int64            // bytes of NDJSON, newlines included
	Types            map[string]int64 // resources by type
	Groups           []string         // ids, in the order of Group.ndjson
	Files            int
}

// Generate writes the population to cfg.Dir: one NDJSON file a type (Type.ndjson, then Type.001.ndjson and so on), in
// the order of the patients. The files get their final names when all of them are complete; after an error or a
// cancelled context there are none.
func Generate(ctx context.Context, cfg Config) (Summary, error) {
	cfg, err := cfg.checked()
	if err != nil {
		return Summary{}, err
	}
	out, err := newOutput(cfg.Dir, cfg.MaxFileBytes)
	if err != nil {
		return Summary{}, err
	}
	summary, err := generate(ctx, cfg, out)
	if err != nil {
		return Summary{}, errors.Join(err, out.discard())
	}
	if err := out.publish(); err != nil {
		return Summary{}, err
	}
	return summary, nil
}

// checked fills in the defaults, and returns every invalid field in one error.
func (c Config) checked() (Config, error) {
	if c.Groups == 0 {
		c.Groups = payerCount
	}
	if c.MaxFileBytes == 0 {
		c.MaxFileBytes = defaultFileBytes
	}
	var problems []error
	if c.Patients < 1 {
		problems = append(problems, fmt.Errorf("synth: Patients is %d, want at least 1", c.Patients))
	}
	if c.Dir == "" {
		problems = append(problems, errors.New("synth: Dir is empty"))
	}
	if c.Groups < 1 || c.Groups > 1000 {
		problems = append(problems, fmt.Errorf("synth: Groups is %d, want 1 to 1000", c.Groups))
	}
	if c.MaxFileBytes < 0 {
		problems = append(problems, fmt.Errorf("synth: MaxFileBytes is %d, want more than 0", c.MaxFileBytes))
	}
	return c, errors.Join(problems...)
}

func generate(ctx context.Context, cfg Config, out *output) (Summary, error) {
	var counts [kinds]int64
	pool := newPool(cfg.Seed)
	first := &block{}
	pool.write(first)
	if err := first.flush(out, &counts); err != nil {
		return Summary{}, err
	}
	if err := generatePatients(ctx, cfg, pool, out, &counts); err != nil {
		return Summary{}, err
	}
	groups, err := writeGroups(ctx, cfg, pool, out)
	if err != nil {
		return Summary{}, err
	}
	counts[groupKind] += int64(len(groups))

	summary := Summary{Bytes: out.bytes, Groups: groups, Files: len(out.names), Types: make(map[string]int64)}
	for k, count := range counts {
		if count > 0 {
			summary.Types[kind(k).String()] = count
			summary.Resources += count
		}
	}
	return summary, nil
}

// block has the resources of a few consecutive patients. Workers fill blocks in any order; they are written in the order of
// their patients.
type block struct {
	lines       [kinds]line
	counts      [kinds]int64
	first, next int           // patients first to next-1
	filled      chan struct{} // receives once when a worker has filled the block
	chart       chart         // kept with the block for its buffers
}

// open starts a resource in the buffer of its type.
func (b *block) open(k kind, id uuid, updated instant, profile string) *line {
	b.counts[k]++
	return b.lines[k].open(k, id, updated, profile)
}

// fill generates the block's patients. After a cancelled context it is incomplete, and is not written.
func (b *block) fill(ctx context.Context, pool *pool) {
	for index := b.first; index < b.next && ctx.Err() == nil; index++ {
		b.chart.write(b, pool, index)
	}
}

// flush writes the block and empties it.
func (b *block) flush(out *output, counts *[kinds]int64) error {
	for k := range kinds {
		lines := &b.lines[k]
		if err := out.write(k, lines.buf); err != nil {
			return err
		}
		counts[k] += b.counts[k]
		b.counts[k] = 0
		lines.buf = lines.buf[:0]
		if cap(lines.buf) > keptBuffer {
			lines.buf = nil
		}
	}
	return nil
}

// generatePatients runs the workers and writes the blocks that they fill. There are at most two more blocks than workers,
// which bounds the memory.
func generatePatients(
	ctx context.Context, cfg Config, pool *pool, out *output, counts *[kinds]int64,
) error {
	ctx, stop := context.WithCancel(ctx)
	workers := min(runtime.GOMAXPROCS(0), mostWorkers)
	inFlight := workers + 2
	free := make(chan *block, inFlight)
	work := make(chan *block, inFlight)
	ordered := make(chan *block, inFlight)
	for range inFlight {
		free <- &block{filled: make(chan struct{}, 1)}
	}

	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	running.Go(func() {
		defer close(work)
		defer close(ordered)
		for first := 0; first < cfg.Patients; first += blockPatients {
			select {
			case b := <-free:
				b.first, b.next = first, min(first+blockPatients, cfg.Patients)
				ordered <- b // neither send blocks: both channels have the capacity for every block
				work <- b
			case <-ctx.Done():
				return
			}
		}
	})
	for range workers {
		running.Go(func() {
			for b := range work {
				b.fill(ctx, pool)
				b.filled <- struct{}{}
			}
		})
	}

	for b := range ordered {
		<-b.filled
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("generate patients: %w", err)
		}
		if err := b.flush(out, counts); err != nil {
			return err
		}
		if cfg.Progress != nil {
			cfg.Progress(b.next)
		}
		free <- b
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("generate patients: %w", err)
	}
	return nil
}

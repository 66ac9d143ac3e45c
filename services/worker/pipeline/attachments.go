package pipeline

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/services/worker/internal/spillset"
)

// attachments serves the attachments of a unit's lines. It finds each element `url` that names a Binary of this server,
// below the root of the line, stores the content of the Binary in a pack, and puts the URL at which the API serves it into
// the line (A-03, A-06, L-12). It comes after all other stages, so that nothing is stored for a line or an element that is
// not exported. It is not safe for concurrent use.
//
// A Binary belongs to the patient, or the resource, of its securityContext. One without belongs to the resource that names
// it, if that is about a patient of the cohort: the reference is all that R4 has about it. Any other is withheld, because
// it cannot be told whose it is.
type attachments struct {
	worker *Worker
	lease  export.Lease
	job    export.Job
	cohort *spillset.List // nil: the lines are about no patient
	ours   bool           // the lines are about patients of the cohort
	guard  lineGuard
	out    []byte

	known  map[string]attached // by id of the Binary
	object *objects.Writer
	offset int64 // in the object
	pack   export.Pack
	done   []export.Pack
	left   export.Tally
}

// attached is a Binary whose content is in a pack.
type attached struct {
	url  string
	only fhir.Ref // the only resource that may have it; zero: every one of the unit
}

// knownAttachments bounds the Binary resources that are remembered, so that one that several resources name is stored
// once. These are mostly of one patient and close to each other.
const knownAttachments = 4096

// newAttachments returns the last stage of a unit. A nil cohort is that of a unit whose lines are about no patient.
func (w *Worker) newAttachments(lease export.Lease, job export.Job, cohort *spillset.List) *attachments {
	return &attachments{
		worker: w, lease: lease, job: job, cohort: cohort, known: map[string]attached{},
		ours: cohort != nil && lease.Unit.Scope != export.ScopeNobody,
	}
}

var binaryType = []byte("Binary")

// serve returns the line with the URLs of its attachments, valid until the next call. A line without such an attachment is
// returned as it is.
func (a *attachments) serve(ctx context.Context, line []byte) ([]byte, error) {
	if a.lease.Unit.Type == "Binary" || !bytes.Contains(line, binaryType) { // the content of a Binary is in its line
		return line, nil
	}
	facts, err := a.guard.scanner.Scan(line)
	if err != nil {
		return nil, fmt.Errorf("read attachments: %w", err)
	}
	r := rewriting{ctx: ctx, attachments: a, of: fhir.Ref{Type: facts.Type, ID: facts.ID}}
	a.out = r.value(a.out[:0], bytes.TrimSpace(line), true)
	switch {
	case r.err != nil:
		return nil, r.err
	case !r.changed:
		return line, nil
	}
	return a.out, nil
}

// rewriting is the rewriting of one line.
type rewriting struct {
	*attachments

	ctx     context.Context
	of      fhir.Ref // the line
	changed bool
	err     error
}

// value appends the JSON value with the URLs of its attachments. Beyond these only white space changes.
func (r *rewriting) value(out, value []byte, root bool) []byte {
	switch {
	case r.err != nil:
	case value[0] == '{':
		out = append(out, '{')
		err := fhir.EachMember(value, func(key, whole, member []byte) {
			if id := r.local(member); !root && string(key) == "url" && id != "" {
				out = r.url(out, value, id)
				return
			}
			out = append(separated(out), whole[:len(whole)-len(member)]...)
			out = r.value(out, member, false)
		})
		r.err = errors.Join(r.err, err)
		out = append(out, '}')
	case value[0] == '[':
		out = append(out, '[')
		err := fhir.Elements(value, func(element []byte) (bool, error) {
			out = r.value(separated(out), element, false)
			return r.err == nil, nil
		})
		r.err = errors.Join(r.err, err)
		out = append(out, ']')
	default:
		out = append(out, value...)
	}
	return out
}

// separated appends a comma unless an object or array has just begun.
func separated(out []byte) []byte {
	if last := out[len(out)-1]; last == '{' || last == '[' {
		return out
	}
	return append(out, ',')
}

// local returns the id if the JSON value is the URL of a Binary of this server.
func (r *rewriting) local(value []byte) string {
	if value[0] != '"' || !bytes.Contains(value, binaryType) {
		return ""
	}
	return idOf(r.worker.Bases, "Binary", fhir.Text(value))
}

// idOf returns the id if the text is a local reference to a resource of the type, also below one of the bases, else "".
func idOf(bases fhir.Bases, typ string, text []byte) string {
	named, id, form := fhir.Classify(text)
	switch {
	case string(named) != typ:
	case form == fhir.Local:
		return string(id)
	case form == fhir.Foreign:
		if ref, ours := bases.Literal(string(text)); ours && ref.Type == typ {
			return ref.ID
		}
	}
	return ""
}

// absent says why an attachment has no url (http://hl7.org/fhir/R4/extension-data-absent-reason.html).
const absent = `"_url":{"extension":[{"url":"http://hl7.org/fhir/StructureDefinition/data-absent-reason",` +
	`"valueCode":"%s"}]}`

// url appends the member url of an object that names the Binary. Of content that is not served the reason takes its place,
// because a url must be readable, and an element without any member is not valid.
func (r *rewriting) url(out, object []byte, id string) []byte {
	url, why, err := r.find(r.ctx, r.of, id)
	r.err, r.changed = errors.Join(r.err, err), true
	if url != "" {
		return fmt.Appendf(separated(out), `"url":%s`, url)
	}
	r.left.Add(r.lease.Unit.Type, why, 1)
	explained := false
	_ = fhir.EachMember(object, func(key, _, _ []byte) { explained = explained || string(key) == "_url" }) // value reads it
	if explained {
		return out
	}
	code := "unknown"
	if why == export.WithheldAttachment {
		code = "masked"
	}
	return fmt.Appendf(separated(out), absent, code)
}

// find returns the URL, as JSON, of the content of a Binary that the resource names, or why it is not served.
func (a *attachments) find(ctx context.Context, of fhir.Ref, id string) (url string, why export.Reason, err error) {
	if held, is := a.known[id]; is && (held.only == fhir.Ref{} || held.only == of) {
		return held.url, "", nil
	}
	why = export.MissingAttachment
	err = a.worker.byID(ctx, a.job, []string{"Binary/" + id}, func(r source.Resource) error {
		verdict, err := a.guard.checkBinary(r)
		if err != nil || verdict == withheld {
			return err
		}
		members, err := fhir.Members(r.Body, "contentType", "securityContext", "data")
		if err != nil {
			return nil //nolint:nilerr // two parsers could read it differently
		}
		held, admitted, err := a.admit(ctx, of, members[1])
		if err != nil || !admitted {
			why = export.WithheldAttachment
			return err
		}
		held.url, err = a.store(ctx, fhir.Text(members[0]), fhir.Text(members[2]))
		if err != nil || held.url == "" {
			return err
		}
		if len(a.known) == knownAttachments {
			clear(a.known)
		}
		a.known[id], url, why = held, held.url, ""
		return nil
	})
	return url, why, err
}

// checkBinary refuses a line that is not the Binary that the source returned it as.
func (g *lineGuard) checkBinary(r source.Resource) (verdict, error) {
	if _, err := g.scan("Binary", r); err != nil {
		return 0, err
	}
	if g.why != "" {
		return withheld, nil
	}
	return admitted, nil
}

// admit reports whether the resource may have a Binary with the securityContext, which is empty if it has none.
func (a *attachments) admit(
	ctx context.Context, of fhir.Ref, securityContext []byte,
) (_ attached, admitted bool, err error) {
	if len(securityContext) == 0 {
		return attached{}, a.ours, nil
	}
	members, err := fhir.Members(securityContext, "reference")
	if err != nil {
		return attached{}, false, nil //nolint:nilerr // two parsers could read it differently
	}
	text := fhir.Text(members[0])
	if idOf(a.worker.Bases, of.Type, text) == of.ID {
		return attached{only: of}, true, nil
	}
	patient := idOf(a.worker.Bases, "Patient", text)
	if patient == "" || a.cohort == nil {
		return attached{}, false, nil
	}
	if admitted, err = a.cohort.Contains(ctx, patient); err != nil {
		err = fmt.Errorf("look up the cohort: %w", err)
	}
	return attached{}, admitted, err
}

// store appends the content, in base64, to the pack and returns its URL as JSON; "" for content that is empty or not
// readable.
func (a *attachments) store(ctx context.Context, contentType, data []byte) (string, error) {
	sum := sha256.New()
	size, err := io.Copy(sum, decoded(data))
	if err != nil || size == 0 {
		return "", nil //nolint:nilerr // not base64
	}
	base, known := a.job.Request.Base()
	if !known {
		return "", export.Permanent("the public URL of the server cannot be told from the URL of the kick-off")
	}
	described := export.Attachment{
		ContentType: string(contentType), Size: size, SHA256: hex.EncodeToString(sum.Sum(nil)),
	}
	header, err := described.Encode()
	if err != nil {
		return "", fmt.Errorf("describe attachment: %w", err)
	}
	if a.object == nil {
		unit := a.lease.Unit
		name := export.PackName(unit.ID, a.lease.Fence, unit.Type, len(a.done))
		a.pack, a.offset = export.Pack{Name: name, Type: unit.Type}, 0
		a.object = a.worker.Objects.Create(ctx, export.PackKey(a.lease.Job, name), "application/octet-stream")
	}
	url, err := json.Marshal(base + export.AttachmentPath(a.lease.Job, export.AttachmentName(a.pack.Name, a.offset)))
	if err != nil {
		return "", fmt.Errorf("encode URL: %w", err)
	}
	written, err := io.Copy(a.object, io.MultiReader(bytes.NewReader(header), decoded(data)))
	if err != nil {
		return "", fmt.Errorf("store attachment: %w", err)
	}
	a.offset += written
	a.pack.Count++
	if a.offset >= a.worker.cfg.FileBytes {
		return string(url), a.finish()
	}
	return string(url), nil
}

// decoded reads base64 with padding; R4 allows white space in it.
func decoded(data []byte) io.Reader {
	if bytes.ContainsAny(data, " \t") {
		data = bytes.Join(bytes.Fields(data), nil)
	}
	return base64.NewDecoder(base64.StdEncoding, bytes.NewReader(data))
}

// finish closes the current pack and waits for the store's confirmation (pitfall 9).
func (a *attachments) finish() error {
	if a.object == nil {
		return nil
	}
	object := a.object
	a.object = nil
	stored, err := object.Commit()
	if err != nil {
		return fmt.Errorf("finish attachments: %w", err)
	}
	a.pack.Stored = stored.Size
	a.done = append(a.done, a.pack)
	a.worker.metrics.stored.WithLabelValues(a.pack.Type).Add(float64(stored.Size))
	return nil
}

// addTo closes the stage and adds what it stored and left out to the unit's result.
func (a *attachments) addTo(result *export.Result) error {
	if err := a.finish(); err != nil {
		return err
	}
	result.Attachments = a.done
	a.left.AddAll(result.LeftOut)
	result.LeftOut = a.left.List()
	return nil
}

// attachedTypes serves the attachments of the lines of an organized unit, each type with packs of its own.
type attachedTypes struct {
	worker *Worker
	lease  export.Lease
	job    export.Job
	cohort *spillset.List
	types  map[string]*attachments
}

// serve is attachments.serve for a line of the type.
func (t *attachedTypes) serve(ctx context.Context, typ string, line []byte) ([]byte, error) {
	of := t.types[typ]
	if of == nil {
		lease, cohort := t.lease, t.cohort
		lease.Unit.Type = typ
		if fhir.IsReferenced(typ) {
			cohort = nil
		}
		of = t.worker.newAttachments(lease, t.job, cohort)
		t.types[typ] = of
	}
	return of.serve(ctx, line)
}

// addTo is attachments.addTo for all types.
func (t *attachedTypes) addTo(result *export.Result) error {
	var packs []export.Pack
	for _, typ := range slices.Sorted(maps.Keys(t.types)) {
		if err := t.types[typ].addTo(result); err != nil {
			return err
		}
		packs = append(packs, result.Attachments...)
	}
	result.Attachments = packs
	return nil
}

// mark returns a function that takes back what is counted as left out from now on.
func (t *attachedTypes) mark() (undo func()) {
	counted := map[string][]export.LeftOut{}
	for typ, of := range t.types {
		counted[typ] = of.left.List()
	}
	return func() {
		for typ, of := range t.types {
			of.left = export.Tally{}
			of.left.AddAll(counted[typ])
		}
	}
}

func (t *attachedTypes) abort() {
	for _, of := range t.types {
		of.abort()
	}
}

// abort drops the unfinished pack of a unit that failed. It does nothing after addTo.
func (a *attachments) abort() {
	if a.object == nil {
		return
	}
	object := a.object
	a.object = nil
	if err := object.Abort(); err != nil {
		a.worker.Logger.Warn("unfinished attachments are left to the sweep", "job_id", a.lease.Job, "unit", a.lease.Unit.ID,
			"err", err)
	}
}

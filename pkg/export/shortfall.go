package export

// Shortfall sums up what the closed units of a job did not export. The zero value is ready to use. It is not safe for
// concurrent use.
type Shortfall struct {
	Failed int // units that failed for good

	left     Tally
	patients int64 // Patient resources that were found
	sought   bool  // some units looked for them
	lost     bool  // one of these failed
}

// Add adds a closed unit.
func (s *Shortfall) Add(unit Unit, result Result) {
	if unit.Type == "Patient" && unit.Scope != ScopeFollowed {
		s.sought, s.lost = true, s.lost || result.Failure != ""
		s.patients += result.Withheld + result.Filtered
		for _, file := range result.Files {
			s.patients += file.Count
		}
	}
	s.lost = s.lost || unit.Organized() && result.Failure != ""
	for _, n := range result.Types {
		if n.Type == "Patient" {
			s.sought = true
			s.patients += n.Found
		}
	}
	if result.Failure != "" {
		s.Failed++
		return
	}
	s.left.AddAll(result.LeftOut)
	if len(result.LeftOut) == 0 { // by a worker of the previous release
		s.left.Add(unit.Type, OtherPatient, result.Withheld)
	}
}

// LeftOut returns what the units left out.
func (s *Shortfall) LeftOut() []LeftOut { return s.left.List() }

// LeftOutOf is LeftOut once all units of the job are closed. It includes the members that the data does not have, unless
// the job reads only what changed.
func (s *Shortfall) LeftOutOf(job Job) []LeftOut {
	var all Tally
	all.AddAll(s.left.List())
	if s.sought && !s.lost && !job.Request.Incremental() {
		all.Add("", MemberMissing, max(job.Cohort.Patients-s.patients, 0))
	}
	return all.List()
}

"""Methods that no paper proposes, one for each thing that the contracts allow."""

"""Listings of VLIW bundles: loops are branches back, trips stand in their exit tests."""

import pytest

from jaxspec.aot import bundles

# A grid of three steps (two more trips fill its pipeline), in each a loop of 64 trips
# around one to 7 in steps of 2, then a branch forwards over a loop that runs as often as
# memory says.
LISTING = """
= control target key start
LB: loop body
= control target key end

     0   :  { %12 = vsyncpa [#allocation3], 0 }
   0x1 LB: > { %s1_s2 = sadd.s32 1, %s1_s2 /* iteration index, stage = 1 */ } /* Start \
region 1 :: Start region 2 */
   0x2 LB: >> { %v1_v1 = vld [vmem:[#allocation2] sm:$0xff] } /* Start region 3 */
   0x3 LB: >>> { %s9_s9 = sadd.s32 2, %s9_s9 } /* Start region 4 :: Start region 5 */
   0x4   : >>> { %p6_p6 = scmp.ge.s32.totalorder %s9_s9, 7 /* loop exit test */ }
   0x5   : >>> { %p7_p7 = scmp.ge.s32.totalorder (%p6_p6), %s1_s1, 64 /* loop exit test \
*/ ;;  %30 = sbr.rel (!%p6_p6) target = $region4 } /* End region 4 :: End region 5 */
   0x6   : >> { %31 = sbr.rel (!%p7_p7) target = $region3 } /* End region 3 */
   0x7   : > { %32 = sbr.rel (%p8_p8) target = $region9 /* window_bounds: (8, 4)
iteration_bounds: (3) */ }
   0x8 LB: >> { %33 = vst [vmem:[#allocation7_spill] sm:$0xff] /*vst_source=*/%v1_v1  ;; \
 %34 = sst [smem:[#allocation8_spill]] %s1_s2 } /* Start region 8 */
   0x9   : >> { %p5_p5 = scmp.ge.s32.totalorder %s3_s3, %s4_s4 /* loop exit test */  ;; \
 %v1_v1 = vld [vmem:[#allocation7_spill] sm:$0xff] }
   0xa   : >> { %35 = sbr.rel (!%p5_p5) target = $region8 } /* End region 8 */
   0xb PF: > { %p4_p4 = scmp.ge.s32.totalorder %s1_s2, 5 /* loop exit test */ } /* Start \
region 9 :: End region 9 */
   0xc   : > { %36 = sbr.rel (!%p4_p4) target = $region1 } /* End region 1 :: End region \
2 */
   0xd   :  { %37 = vsyncpa [#allocation3], 1 }
"""


def test_loops_are_found_with_their_trips():
    listing = bundles.parse(LISTING)
    assert listing.bundles == 14
    assert listing.grid == (1, 13, 5)
    assert listing.loops == ((2, 7, 64), (3, 6, 4), (8, 11, None))


def test_vectors_that_are_put_away_are_counted_but_not_scalars():
    assert bundles.parse(LISTING).spills == 1


@pytest.mark.parametrize("trips", [0, 1, 10])
def test_a_step_repeats_its_loops(trips):
    once = 4  # bundles 1, 7, 11 and 12
    expected = once + 64 * (2 + 4 * 3) + trips * 3
    assert bundles.parse(LISTING).step(trips) == expected


def test_a_kernel_without_a_grid_is_one_step():
    lines = [line for line in LISTING.splitlines() if " 0x1 " not in line]
    listing = bundles.parse("\n".join(lines))
    assert listing.grid is None
    assert listing.step() == 13 - 8 + 64 * (2 + 4 * 3) + 3


def test_listings_are_found_by_name(tmp_path):
    for name in (
        "1795275272-tree_ssd.1-01-final_bundles.txt",
        "1795275272-tree_ssd.1-00-schedule-analysis_final_bundles.txt",
        "1795275272-TLP-hlo.txt",
    ):
        (tmp_path / name).write_text(LISTING)
    assert [name for name, _ in bundles.listings(tmp_path)] == ["tree_ssd"]

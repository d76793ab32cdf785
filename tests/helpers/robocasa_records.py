"""Recorded answers of RoboCasa v0.2, unmodified.

The code of RoboCasa v0.2 (github.com/robocasa/robocasa, commit 756598a) ran on robosuite 1.5.2 with boxes in
place of its meshes, which are not available here; the metadata of an episode does not depend on them. A
demonstration's attribute `ep_meta` is the dictionary of `get_ep_meta()` as JSON (its
docs/use_cases/using_datasets.md).
"""

KITCHEN_SPLIT = {"right": (0, 6), "right_gripper": (6, 7), "base": (7, 10), "torso": (10, 11)}
"""The action split of RoboCasa v0.2's robot, read from the running environment."""
PLAIN_SPLIT = {"right": (0, 6), "torso": (6, 7), "base": (7, 10), "right_gripper": (10, 11)}
"""The action split of robosuite 1.5.2's own PandaOmron, read from the running environment."""

SENTENCES = {
    "PnPCounterToCab": "pick the kettle electric from the counter and place it in the cabinet",
    "PnPCabToCounter": "pick the lemon from the cabinet and place it on the counter",
    "PnPCounterToSink": "pick the mushroom from the counter and place it in the sink",
    "PnPSinkToCounter": "pick the kiwi from the sink and place it on the plate located on the counter",
    "PnPCounterToMicrowave": "pick the fish from the counter and place it in the microwave",
    "PnPMicrowaveToCounter": (
        "pick the mushroom from the microwave and place it on plate located on the counter"
    ),
    "PnPCounterToStove": "pick the squash from the plate and place it in the pan",
    "PnPStoveToCounter": "pick the mango from the pan and place it in the bowl",
    "OpenSingleDoor": "open the microwave door",
    "CloseSingleDoor": "close the cabinet door",
    "OpenDoubleDoor": "open the cabinet doors",
    "CloseDoubleDoor": "close the cabinet doors",
    "OpenDrawer": "open the left drawer",
    "CloseDrawer": "close the right drawer",
    "TurnOnSinkFaucet": "turn on the sink faucet",
    "TurnOffSinkFaucet": "turn off the sink faucet",
    "TurnSinkSpout": "turn the sink spout to the left",
    "TurnOnStove": "turn on the front left burner of the stove",
    "TurnOffStove": "turn off the rear right burner of the stove",
    "CoffeeSetupMug": "pick the mug from the counter and place it under the coffee machine dispenser",
    "CoffeeServeMug": "pick the mug from under the coffee machine dispenser and place it on the counter",
    "CoffeePressButton": "press the button on the coffee machine to serve coffee",
    "TurnOnMicrowave": "press the start button on the microwave",
    "TurnOffMicrowave": "press the stop button on the microwave",
}
"""One sentence per task, as the code of RoboCasa v0.2 returned it for a scene of this evaluation."""

EP_META = """{
  "layout_id": 6, "style_id": 9,
  "object_cfgs": [{"name": "obj", "obj_groups": "all", "graspable": true, "type": "object",
    "placement": {"fixture": "counter_1_left_group", "size": [0.6, 0.3], "pos": [0.0, -1.0], "offset": [0.0, 0.1]},
    "info": {"groups": ["all"], "cat": "kettle_electric", "split": "B"}}],
  "fixtures": {"counter_1_left_group": {"cls": "Counter"}, "cab_2_left_group": {"cls": "SingleCabinet"}},
  "gen_textures": {}, "lang": "pick the kettle electric from the counter and place it in the cabinet",
  "fixture_refs": {"cab": "cab_2_left_group", "counter": "counter_1_left_group"},
  "cam_configs": {"robot0_agentview_left": {"pos": [-0.5, 0.35, 1.05], "camera_attribs": {"fovy": "60"}, "parent_body": "mobilebase0_support"}}
}"""
"""`get_ep_meta()` of PnPCounterToCab, seed 33, as JSON, shortened: of 3 objects and 118 fixtures the ones
that matter.
"""
